"""What server and worker both use. Neither is imported from here."""
