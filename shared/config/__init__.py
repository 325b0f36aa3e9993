"""Settings: read once from the environment and `.env`, validated, and passed down. Read `settings.py` first."""
