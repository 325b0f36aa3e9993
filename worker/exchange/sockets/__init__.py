"""What the stream is made of: one socket, and the messages of one index. Read `connection.py` first."""
