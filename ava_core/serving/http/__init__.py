"""The engine behind OpenAI's HTTP interface. Importing the package is cheap."""
