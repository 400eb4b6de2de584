"""Every sentence a person reads in the portal, in one place: plain language, ready to translate."""

from typing import Final

LANGUAGE: Final = "en"
COOPERATIVE: Final = "Health data cooperative"
CONSOLE: Final = "Hospital console"
PUBLIC: Final = "The cooperative"
VERIFY: Final = "Verify a receipt"
SIGN_IN: Final = "Sign in"
SIGN_OUT: Final = "Sign out"
MY_CONSENTS: Final = "My consents"
JOIN: Final = "Join with a code"
DECIDE: Final = "Decide"
WHO_USED: Final = "Who used my data"
MY_CREDITS: Final = "Thank-you credits"
MODELS: Final = "Models"
ASK: Final = "Ask"
API_KEYS: Final = "API keys"
API_KEYS_TEXT: Final = "For the command line and your own scripts: set it as COOP_API_KEY."
API_KEY_ONCE: Final = "Copy it now. It is shown only this once."
STATUS: Final = "Status"
APPROVALS: Final = "Approvals"
BUDGET: Final = "Privacy budget"
QUALITY: Final = "Data quality"
DESK: Final = "Enrolment desk"

NOT_CLINICAL: Final = "No model here is for clinical use."
HONESTY: Final = (
    "This is a demonstration: real hospital records from 1988 and made-up people. The hospitals "
    f"named are not members. {NOT_CLINICAL}"
)
"""Said by the demo's portal only."""
SIGN_IN_TEXT: Final = (
    "You sign in with the service your cooperative uses. We learn only that it is you again, not "
    "your name or address."
)
SIGN_IN_AGAIN: Final = "Your sign-in is too old. Please sign in again."
CARE: Final = "Your care does not change, whatever you choose here."
NO_RECORD: Final = (
    "No hospital record is joined to this account yet. Your hospital gives you a code for that."
)
STOP: Final = "Stop"
STOPPED_NOW: Final = (
    "Stopped. It is in effect everywhere by {time}. A model already trained keeps what it learned "
    "unless it is retrained; your record is not used again. Credits you earned stay yours."
)
CANNOT_UNDO: Final = "Stopping needs no key and no reason. To allow again later you sign once more."
JOIN_TEXT: Final = (
    "Your hospital gave you a code after checking who you are. Your device makes a key of its own "
    "for this record. The key and the secret part of the code never leave this device. If you had "
    "a key before, one part of the code comes by letter: type both parts, one after the other."
)
JOIN_LINK: Final = (
    "If you join two hospitals in one account, the cooperative learns that both records are "
    "yours. Use two accounts if you do not want that."
)
JOIN_WAIT: Final = "Your hospital is checking the code …"
JOIN_DONE: Final = "Joined. Now decide what your record may be used for."
DECIDE_TEXT: Final = (
    "Choose, read what you would sign, then sign on this device. You can stop at any time with "
    "one click."
)
EPSILON: Final = (
    "Because you take part, the odds of any conclusion anyone can draw from what leaves your "
    "hospital change by at most a factor of about 2.7 in one study, training, tests and questions "
    "about groups together, with a failure allowance of one in a million. Your hospital can sign a "
    "higher limit for a study, at most a factor of about 20."
)
EPSILON_OF_STUDY: Final = (
    "Because a patient takes part in all of this study, the odds of any conclusion anyone can draw "
    "from what leaves her hospital change by at most a factor of {factor}, but for a failure "
    "allowance of δ."
)
SIGNED: Final = "Signed and recorded in the public log as entry {index}."
USES_TEXT: Final = (
    "This list comes from your hospital, signed by it, and is not kept anywhere else. Use is known "
    "per round for the whole set of records, not “someone read your file”."
)
USES_ASK: Final = "Ask my hospital for the list"
USES_WHY: Final = (
    "Sign this request with the key on this device. So nobody, not even the cooperative, can ask "
    "for your list in your name. Without your key, ask at the hospital's desk."
)
USES_AGAIN: Final = (
    "You can ask again with the button above; a request counts for ten minutes. If it is refused "
    "once more, ask at the hospital's desk."
)
USES_SIGNED: Final = [["What I do", "Ask for the list of what used my record"]]
COMPANY: Final = " (a company)"
NO_USES: Final = "Nothing has used your record so far."
CREDITS_TEXT: Final = (
    "When a model that your hospital's patients made possible is used, part of the fee comes back. "
    "Stopping never takes back earned credits."
)
CREDITS_LATER: Final = (
    "Amounts are shown after you have stored a choice, so that they cannot sway it."
)
RECEIPT: Final = "Download the receipt"
DECIDE_NOW: Final = "Decide now →"
NO_CREDITS: Final = "What you collect will stand here."
ASK_RECEIPT: Final = "This is the number of the signed receipt; the log holds its fingerprint."
ASK_COST: Final = (
    "A question costs {credits} credits. It asks the released model and reads no record. Leave "
    "empty what is not known."
)
ASK_NOTHING: Final = "Say at least one thing about the made-up person."
OTHER_VALUE: Final = "none of these"
METRICS_TEXT: Final = (
    "Estimated from counts with privacy noise; sd is the spread of that noise. “Too few” means the "
    "noise is larger than what could be said."
)
INTRODUCTION: Final = (
    "Hospitals train models together without moving a record. Patients decide, record by record, "
    "whether theirs takes part, and can stop at any time. What the models earn comes back to them."
)
LOG_TEXT: Final = (
    "Every decision and every training round leaves a fingerprint in a log of {size} entries that "
    "can only grow. Its newest checkpoint is signed by {names}. `coop verify log` checks all of it "
    "on your own computer."
)
SET_ASIDE: Final = (
    "Set aside by your staff. Each record counts as denied until its patient signs a choice again."
)
LOG_NOTE: Final = "The signed checkpoint"
HELD_KEY: Final = "This hospital holds her key. Whatever is signed with it says so."
WRITE_TO_THEM: Final = (
    "A new key speaks for their records. Tell each by letter, and that she can stop it until then: "
    "with her old key, in her account, or here."
)
SECOND_PART: Final = (
    "Her record had a key. Send this part by letter to the address you have. She types both, one "
    "after the other."
)
COMPARE_KEYS: Final = (
    "The cooperative lists hospitals that this one does not know yet. Each hospital's cosignature "
    "makes consents usable, so call them, on a number you know, and let them read you their key. "
    "Nothing can be signed here before."
)
BUDGET_TEXT: Final = (
    "Figures are zCDP rho, the most that any one patient paid. What is spent never comes back."
)
HISTORY: Final = "History and receipts"
ALL_RECEIPTS: Final = "Download all receipts"
MAY_DO: Final = "What my record may do"
PROPOSED: Final = "What your hospital proposes; nothing happens unless you sign"
DECLINE: Final = "Decline"
OBJECTED: Final = "You object to all research"
OBJECT: Final = "Object to all research, at every hospital"
OBJECT_TEXT: Final = (
    "One click: whatever you allowed or will allow, no research uses your records until you end "
    "the objection. It needs no key."
)
LIFT: Final = "End my objection"
LIFTED: Final = "Ended. What you allowed before counts again."
MIGHT_DO: Final = "What it was allowed before"
HELP: Final = (
    "Help: ask the enrolment desk of your hospital. It can also stop for you, without a key."
)
SYNTHETIC_ONLY: Final = "Type a made-up person. Never enter anything about a real patient here."
CONSOLE_EXACT: Final = (
    "Exact figures, for this house only. Nothing on this page leaves the building."
)
VERIFY_TEXT: Final = (
    "Paste a receipt. The hub checks it step by step. To check without trusting the hub, run the "
    "command below on your own computer with the keys you pinned."
)
VERIFY_COMPLETE: Final = "Every step holds."
VERIFY_WAITING: Final = (
    "Genuine and recorded, but not complete yet: too few hospitals have cosigned the log that "
    "holds it. Download the receipt again in a minute."
)

PRESETS: Final = {
    "all-research": (
        "Allow",
        "Any research on my heart records, but not by companies.",
    ),
    "with-companies": (
        "Allow, companies too",
        "Any research on my heart records, by companies too.",
    ),
    "train-only": (
        "Allow learning only",
        "Models may learn from my heart records, not for companies; no questions about groups.",
    ),
    "no-companies": (
        "Allow, not for profit only",
        "Any not-for-profit research, on all kinds of my data.",
    ),
    "refuse": ("No", "My record is not used for research."),
}
"""Consent presets of the gate, with the words people choose by."""

EVENTS: Final = {
    "grant": "decided",
    "amend": "changed",
    "revoke": "stopped",
    "suspend": "paused",
    "resume": "resumed",
    "object": "objected to all research",
    "lift": "ended the objection",
    "propose": "proposed by the hospital",
    "reject": "declined",
    "deceased": "death reported",
    "void": "recorded in error",
}

USES: Final = {
    "audit": "shown to an auditor, who checks that whoever took part had allowed it",
    "emergency": "scored for your treatment, without asking you",
    "training round": "learned from your record",
    "evaluation": "tested a model on your record",
    "cohort answer": "counted your record in an answer about a group",
}

SIGNER_TEXT: Final = {
    "short_pass": "Please use 12 letters or more.",
    "bad_code": "This does not look like a hospital code. Please check it.",
    "created": "Your key is on this device. Keep the recovery file and its passphrase.",
    "restored": "Your key is back on this device.",
    "signed": "Signed on this device.",
    "failed": "That did not work. Nothing was sent.",
    "no_key": "The key for this record is not here. Bring it back with your recovery file.",
    "passkey_name": "My health record",
    "again": "Your passkey is made. Please confirm once more, to join with it.",
    "created_passkey": "Your passkey has signed. The device keeps it; nothing else is needed.",
    "no_passkey": "The device made no passkey, or it was not confirmed. Nothing was sent.",
    "no_portal": "This record's key is a passkey. It signs only at the portal's own address.",
    "no_storage": "This browser does not let the page keep a key. Try another, or the desk.",
}

# --- keys and people ------------------------------------------------------------------------------
MY_KEYS: Final = "My keys, and who can decide for me"
MY_KEYS_TAB: Final = "My keys"
KEYS_TEXT: Final = (
    "Your key is what makes a decision yours. Here you see which key that is, and everybody else "
    "who may say something about your record. Whatever takes away is one click and needs no key."
)
KEY_KINDS: Final = {
    "self": "Your own key, on your device",
    "passkey": "A passkey that your device keeps",
    "custodial": "Your hospital holds the key and signs what you tell it",
    "demo": "Made up for this demonstration",
}
KEY_CLOSED: Final = (
    "Closed: nobody can allow anything more with this record until your hospital gives a new code."
)
KEY_WAITS: Final = (
    "This key is new. It can stop everything now, and allow something from {day} on. If you did "
    "not ask for it, object below: you close it."
)
KEY_NEXT: Final = "The key that may follow is named: coop patient rotate replaces yours at once."
KEY_NO_NEXT: Final = (
    "No key that may follow is named: for a new one, ask for a new code at your hospital's desk."
)
KEY_GUARDIANS: Final = (
    "{threshold} of {count} people you named can give your record a new key, each with "
    "coop patient recover."
)
KEY_VOTES: Final = (
    "{count} of them have asked for a new key. If you did not want that, close the key."
)
KEY_NO_GUARDIANS: Final = "Nobody is named who could give your record a new key, if yours is lost."
PENDING: Final = (
    "What was last allowed takes effect on {day}, not before. If you did not want that, stop it."
)
PENDING_NEVER: Final = (
    "What was last allowed never takes effect: its key was closed or replaced before that day."
)
PENDING_STOP: Final = "Stop it, at once"
PENDING_STOPPED: Final = "Stopped. In force everywhere by {time}."
ON_DEATH: Final = {
    "stop": "When you have died, nothing new uses this record.",
    "continue": "When you have died, your decision stays as it is.",
    "dead": "A death was reported for this record: nothing more can be allowed with it.",
}
COMMANDS_TITLE: Final = "With a key file on your own computer"
COMMANDS: Final = """\
This is for keys made by `coop patient new`. A key of a browser has no such file: for another one, \
ask for a new code at your hospital's desk.

- `coop patient keys` shows what stands here.
- `coop patient rotate` replaces your key by the next one, if one is named; at once.
- `coop patient recover --prepare --key NEWFILE` makes a new key when yours is lost, and prints \
what the people you named then give to `coop patient recover`.
- `coop patient close` closes your key, as below.
"""
PEOPLE_TITLE: Final = "Who can decide for you"
PEOPLE_NONE: Final = "Nobody but you."
ROLES: Final = {
    "parent": "Parent",
    "guardian": "Legal guardian",
    "proxy": "Proxy",
    "executor": "Executor of the estate",
}
NAMED_BY: Final = {"patient": "named by you", "hospital": "recorded by your hospital"}
PERSON_END: Final = "End this, at once"
PERSON_END_TEXT: Final = "If what is allowed now was allowed by this person, it ends, too."
PERSON_ENDED: Final = f"Ended. In force everywhere by {{time}}. {PERSON_END_TEXT}"
CLOSE_TITLE: Final = "I lost my key, or somebody else may have it"
OBJECT_KEY_TITLE: Final = "I did not ask for this new key"
CLOSE_TEXT: Final = (
    "Closing ends what this key can allow: until your hospital has enrolled a new one, nothing can "
    "be allowed with your record by anybody, and the new one can allow something after seven days. "
    "What you allowed yourself and is in force stays in force: to end that, stop it under “My "
    "consents”. Proxies that a key of this record named end, and what is allowed by one of them "
    "ends, too. What the key or a proxy allowed for a later day never begins. Closing cannot be "
    "undone here."
)
CLOSE_SURE: Final = "I understand, and want to close this key"
CLOSE: Final = "Close this key"
CLOSED: Final = "Closed. In force everywhere by {time}. Ask your hospital's desk for a new code."
REPLACED_TITLE: Final = "Your earlier key was replaced"
REPLACED_TEXT: Final = (
    "Your record at {site} has another key since {day}. If that was not you, close it now."
)
