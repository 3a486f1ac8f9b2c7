"""Files for trainers: judgements.py what was judged, pairs.py preferences in it, formats.py rows of each format, writing.py the files."""
