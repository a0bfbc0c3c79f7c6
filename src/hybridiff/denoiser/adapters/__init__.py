"""What is special about each family of networks: one adapter a file."""
