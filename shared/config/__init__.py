"""Settings: read once from the environment and `.env`, checked, and passed down. Read `settings.py` first."""
