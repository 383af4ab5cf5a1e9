"""What each step of the pipeline takes and gives. Imports nothing heavy and knows no other part of Ava."""
