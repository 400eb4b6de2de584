"""The counter: questions come in, are paid for, answered and receipted.

`oip` is the wire format of point questions, `answer` their path; `cohort` sends questions to the
hospitals over the claim queue `jobs`, `settlement` takes what comes back; `uses` relays a patient's
question about her own record; `gateway` assembles them, `api` has the routes.
"""
