"""What may be asked, and which of two settings is stronger: knows no model."""
