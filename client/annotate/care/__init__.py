"""Care for people who judge: limits.py caps and breaks, warning.py and pausing.py what follows wrong known answers, erasure.py stopping and
erasing, own_data.py what is stored of somebody."""
