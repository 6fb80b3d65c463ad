"""What a reconstruction is judged by."""
