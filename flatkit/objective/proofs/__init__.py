"""What an objective proves of itself before anything is measured."""
