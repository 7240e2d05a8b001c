"""The outer loop: propose, gate, train, score, feed back; and the statistics that decide.

`discover.run` is the whole of it. `archive` keeps every attempt and measurement, `laboratory`
measures what the archive does not have, `racing` and `statistics` say what goes on and what may be
believed, `frontier` what a score is.
"""
