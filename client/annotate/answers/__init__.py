"""What people say: answers.py their judgements, reports.py what the team should look at."""
