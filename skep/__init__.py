"""skep: the public package. What a person types or imports; it knows neither manager nor agent."""

__version__ = "0.1.0"
