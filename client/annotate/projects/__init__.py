"""What is asked of people. Knows nobody who answers.

config.py             a project's YAML; yaml_reader.py reads it, yaml_writer.py writes it, default_project.yaml is the first one
projects.py           versions of projects, rounds; copying.py settings under another name
rules.py              which rule is to be attacked
bodies.py             what an answer of each kind must hold
"""
