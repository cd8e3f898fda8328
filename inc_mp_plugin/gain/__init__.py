"""What each configuration of each group gains."""
