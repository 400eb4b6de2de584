"""The hospital: everything that touches a patient's row, and the hub's half of the rounds.

At the node: `site` and `importers` hold the rows, `mirror` verifies consent and the log, `round` is
one round step by step, `private_training` clips and adds the noise, `budget` is the privacy ledger,
`cohort` and `uses` answer jobs, `node` runs it all. At the hub (no torch): `rounds`, `server`,
`gate`, `step`, `metrics`, `superlink`, `front`. `flower_compat` is the only importer of Flower's
internals.
"""
