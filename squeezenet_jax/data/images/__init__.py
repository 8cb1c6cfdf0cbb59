"""One image: its encoded bytes to pixels (`decoding`, `jpeg`), and the part of it that is used (`crops`)."""
