"""The head store on disk: blobs, version and generation records, and the only road to the operating system. Knows no torch."""
