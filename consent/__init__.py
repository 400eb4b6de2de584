"""The gate: who may do what with whose record.

Reading order: `purposes` and `mondo` (the words), `duo` (what a study asserts), `policy` (what a
patient signs), `decide` (where consent is decided), `chain` (how events follow each other),
`registry` (where they are kept), `api`, `fhir` (how consents travel).
"""
