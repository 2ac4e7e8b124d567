"""What is asked and answered, and how it is shown."""
