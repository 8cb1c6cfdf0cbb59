"""One run: loss and metrics (`objective`), the compiled steps (`steps`), the loop (`train`) and what they need."""
