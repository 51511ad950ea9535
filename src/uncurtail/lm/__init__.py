"""The language model and how it is trained on one site; knows neither Flower nor Redis."""
