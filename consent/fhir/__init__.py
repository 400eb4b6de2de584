"""Consents as other systems write them: FHIR R4 and R5, the German MII profile, and receipts.

Reading order: `refusals` (why a document is refused), `words` (code systems), `elements` and
`times` (reading single elements), `reader` and `mii` (FHIR to policy), `writer` (policy to FHIR),
`record` (a consent chain as a whole resource), `receipts` (ISO 27560 and Kantara), `search` and
`api` (the routes). The signature is always over our own envelope; FHIR is how it travels.
"""
