"""What a model learned, as a page that a person reads."""
