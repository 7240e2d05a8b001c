"""Where text comes from: packaged reviews, a tokenizer, preference pairs, and a cache of what is built."""
