"""The cooperative: what all parts share, and the way in.

Reading order, following one record (`docs/tour.md` tells it as a story):

1. `consent.policy`, `consent.decide`     what a patient signs; where consent is decided
2. `consent.registry`, `coop.journal`     where policies are kept, and the log nobody can rewrite
3. `federated.round`                      one round at a hospital, step by step
4. `federated.private_training`           clipping and noise: where the noise is added
5. `federated.gate`, `federated.rounds`   what the hub lets in, sums and records
6. `coop.catalogue`, `inference_gateway`  the released model and the counter where it is asked
7. `coop.ledger`, `coop.economy`          who paid, who earned: where the money is split

Kernel, bottom up: `errors`, `money`, `canonical`, `keys`, `settings`, `db`, `journal`, `documents`.
"""
