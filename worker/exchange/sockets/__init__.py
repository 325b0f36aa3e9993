"""What the stream is made of: sockets, the messages of an index, the platform's states. Read `connection.py` first."""
