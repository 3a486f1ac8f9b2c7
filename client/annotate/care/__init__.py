"""Care for people who judge: limits.py caps and breaks, pausing.py a pause after wrong known answers, erasure.py stopping and erasing,
own_data.py what is stored of somebody."""
