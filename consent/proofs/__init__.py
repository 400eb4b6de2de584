"""Proofs about consents that show less than the consents themselves; `coop verify` reads them.

`ristretto` is the group and the only importer of its library; `bits` proves that a commitment holds
yes or no; `tally` sums them to "N of M"; `counting` makes a tally of the registry.

What is called zero-knowledge is the proof in `bits` alone.
"""
