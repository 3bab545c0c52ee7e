"""An OpenRouter stand-in: test mode for people without a key, and the faulty upstream of the tests."""
