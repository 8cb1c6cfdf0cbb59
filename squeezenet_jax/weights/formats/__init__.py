"""One file for each published format, and what they share: a table told by shapes (`infer`), metadata as JSON."""
