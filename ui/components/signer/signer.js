// Runs in the patient's browser only. Twin of coop.canonical, coop.keys and coop.enrolment: a test
// proves the bytes equal. The private key is a non-extractable CryptoKey in IndexedDB, filed under
// its did, or a passkey of the device, of which only the name lies there; nothing secret is ever
// handed to Streamlit.

const utf8 = new TextEncoder();
const subtle = crypto.subtle;
const ROUNDS = 600000; // PBKDF2-SHA256: WebCrypto has no Argon2
const PASSPHRASE_MIN = 12;
const ED25519 = [0xed, 0x01]; // multicodec names of public keys
const P256 = [0x80, 0x24];
const P256_ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
const PASSKEY_WAIT_MS = 120000;
const LETTERS58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const LETTERS32 = "abcdefghijklmnopqrstuvwxyz234567";

const base64 = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes)));
const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const base64url = (bytes) => base64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = (count) => crypto.getRandomValues(new Uint8Array(count));

/** RFC 8785 for the subset we sign: no floats, printable ASCII names, NFC strings. */
export function canonical(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "number") {
    if (!Number.isSafeInteger(value)) throw Error("not signable");
    return String(value);
  }
  if (typeof value === "string") {
    if (value !== value.normalize("NFC") || !value.isWellFormed()) throw Error("not signable");
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object") throw Error("not signable");
  const names = Object.keys(value).sort();
  if (names.some((name) => !/^[\x20-\x7e]+$/.test(name))) throw Error("not signable");
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
}

/** coop.canonical.encode: the domain tag, a zero byte, the canonical value. */
export function encode(tag, value) {
  return utf8.encode(`${tag}\u0000${canonical(value)}`);
}

/** eddsa-jcs-2022: SHA-256 of the proof options, then SHA-256 of the document without its proof. */
export async function toSign({ proof, ...document }) {
  const parts = [];
  for (const part of [proof, document]) {
    parts.push(...new Uint8Array(await subtle.digest("SHA-256", utf8.encode(canonical(part)))));
  }
  return new Uint8Array(parts);
}

/** did:key of a raw public key: Ed25519, or a compressed point of P-256. */
export function didOf(publicKey, kind = ED25519) {
  let number = [...kind, ...publicKey].reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
  let text = "";
  for (; number > 0n; number /= 58n) text = LETTERS58[Number(number % 58n)] + text;
  return `did:key:z${text}`;
}

/** Public id and secret bytes of a hospital's code. */
export function parseCode(typed) {
  const text = typed.replace(/\s/g, "").toLowerCase();
  const found = /^([a-z][a-z0-9_-]{0,63}\.[a-z2-7]{8})-([a-z2-7-]{26,40})$/.exec(text);
  const letters = found ? found[2].replaceAll("-", "") : "";
  if (letters.length !== 26) throw Error("bad_code");
  let bits = "";
  for (const letter of letters) bits += LETTERS32.indexOf(letter).toString(2).padStart(5, "0");
  if (!/^0+$/.test(bits.slice(128))) throw Error("bad_code");
  const secret = Uint8Array.from({ length: 16 }, (_, at) => parseInt(bits.slice(8 * at, 8 * at + 8), 2));
  return { codeId: found[1], secret };
}

/** What goes to the hub so that this key is enrolled; the code's secret stays here. */
export async function redemption({ codeId, secret }, did, sign) {
  const macKey = await subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const mac = base64url(await subtle.sign("HMAC", macKey, encode("coop/enrol/mac/v1", { code_id: codeId, did })));
  const proof = await sign(encode("coop/enrol/v1", { code_id: codeId, did, mac }));
  return { code_id: codeId, did, mac, proof: base64url(proof) };
}

const ed25519 = (privateKey) => (message) => subtle.sign("Ed25519", privateKey, message);

/** The compressed point of a P-256 key as browsers export it: SPKI, whose end is 4 ‖ x ‖ y. */
export function pointOf(spki) {
  const [x, y] = [spki.slice(-64, -32), spki.slice(-32)];
  if (spki.length !== 91 || spki[26] !== 4) throw Error("no_passkey");
  return Uint8Array.from([2 + (y[31] & 1), ...x]);
}

/** coop.passkeys.packed: authenticatorData ‖ r ‖ s ‖ clientDataJSON, s the smaller of the two. */
export function packed(authenticatorData, clientData, der) {
  const scalars = [];
  for (let at = 2; at < der.length; at += 2 + der[at + 1]) {
    const digits = Array.from(der.slice(at + 2, at + 2 + der[at + 1]));
    scalars.push(digits.reduce((sum, byte) => sum * 256n + BigInt(byte), 0n));
  }
  const [r, s] = scalars;
  const fixed = [r, s < P256_ORDER - s ? s : P256_ORDER - s].flatMap((number) =>
    number.toString(16).padStart(64, "0").match(/../g).map((pair) => parseInt(pair, 16)));
  return Uint8Array.from([...authenticatorData, ...fixed, ...clientData]);
}

/** A new passkey of this device; what it may sign is only ever this portal's. */
async function createPasskey(party) {
  const made = await navigator.credentials.create({ publicKey: {
    rp: { id: party.rp_id, name: party.rp_id },
    // One name for all: what a device lists must not tell at which hospital somebody is known.
    user: { id: random(32), name: party.user, displayName: party.user },
    challenge: random(32), // nothing is attested, so nobody would check it
    pubKeyCredParams: [{ type: "public-key", alg: -7 }],
    authenticatorSelection: { residentKey: "preferred", userVerification: "required" },
    attestation: "none", timeout: PASSKEY_WAIT_MS,
  } }).catch(() => { throw Error("no_passkey"); });
  const did = didOf(pointOf(new Uint8Array(made.response.getPublicKey() ?? [])), P256);
  await keys("readwrite", (store) => store.put({ passkey: new Uint8Array(made.rawId) }, did));
  return did;
}

/** Signs with a passkey: this device's by its name, or one the person picks. */
const passkey = (party, kept) => async (message) => {
  const { response } = await navigator.credentials.get({ publicKey: {
    rpId: party.rp_id,
    challenge: new Uint8Array(await subtle.digest("SHA-256", message)),
    allowCredentials: kept ? [{ type: "public-key", id: kept.passkey }] : [],
    userVerification: "required", timeout: PASSKEY_WAIT_MS,
  } }).catch(() => { throw Error("no_passkey"); });
  const parts = [response.authenticatorData, response.clientDataJSON, response.signature];
  return packed(...parts.map((part) => new Uint8Array(part)));
};

/** One operation on the store of keys; resolves when its transaction is durable. */
async function keys(mode, act) {
  const open = indexedDB.open("coop-keys", 1);
  open.onupgradeneeded = () => open.result.createObjectStore("keys");
  const database = await new Promise((done, failed) => {
    open.onsuccess = () => done(open.result);
    open.onerror = () => failed(Error("no_storage"));
  });
  return new Promise((done, failed) => {
    const transaction = database.transaction("keys", mode);
    const request = act(transaction.objectStore("keys"));
    transaction.oncomplete = () => { database.close(); done(request.result); };
    transaction.onerror = () => failed(Error("no_storage"));
  });
}

/** Every way into the store is a non-extractable import; the given bytes are wiped. */
async function adopt(did, pkcs8) {
  const privateKey = await subtle.importKey("pkcs8", pkcs8, "Ed25519", false, ["sign"]);
  pkcs8.fill(0);
  await keys("readwrite", (store) => store.put(privateKey, did));
  return privateKey;
}

async function wrappingKey(header, passphrase) {
  if (!(header.rounds >= ROUNDS)) throw Error("weak file");
  const typed = utf8.encode(passphrase.normalize("NFKC"));
  const material = await subtle.importKey("raw", typed, "PBKDF2", false, ["deriveKey"]);
  const how = { name: "PBKDF2", hash: "SHA-256", salt: fromBase64(header.salt), iterations: header.rounds };
  return subtle.deriveKey(how, material, { name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
}

// The header is authenticated: a file cannot be given another person's did.
const sealing = (header) => ({
  name: "AES-GCM", iv: fromBase64(header.iv), additionalData: utf8.encode(canonical(header)),
});

/** A new key in the store and its recovery file. */
async function create(passphrase) {
  const pair = await subtle.generateKey("Ed25519", true, ["sign", "verify"]);
  const pkcs8 = new Uint8Array(await subtle.exportKey("pkcs8", pair.privateKey));
  const did = didOf(new Uint8Array(await subtle.exportKey("raw", pair.publicKey)));
  const header = { v: 1, did, rounds: ROUNDS, salt: base64(random(16)), iv: base64(random(12)) };
  const sealed = await subtle.encrypt(sealing(header), await wrappingKey(header, passphrase), pkcs8);
  const privateKey = await adopt(did, pkcs8);
  return { did, privateKey, file: { ...header, sealed: base64(sealed) } };
}

async function restore(text, passphrase) {
  const { sealed, ...header } = JSON.parse(text);
  const key = await wrappingKey(header, passphrase);
  const pkcs8 = new Uint8Array(await subtle.decrypt(sealing(header), key, fromBase64(sealed)));
  await adopt(header.did, pkcs8);
}

function download(name, value) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

function describe(list, pairs) {
  const rows = pairs.flatMap(([label, value]) => [["dt", label], ["dd", value]]);
  list.replaceChildren(...rows.map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text })));
}

/** Streamlit calls this at every render: handlers are assigned, never added. */
export default function ({ parentElement: root, data, setTriggerValue: fire }) {
  const part = (id) => root.querySelector(`#${id}`);
  const say = (text) => { part("msg").textContent = text; };
  const on = (id, act) => {
    part(id).onclick = () => act().catch((error) => say(data.text[error.message] ?? data.text.failed));
  };
  part("join").hidden = data.mode !== "join";
  const party = data.passkeys?.origins?.includes(location.origin) && window.PublicKeyCredential
    ? { ...data.passkeys, user: data.text.passkey_name } : null;
  part("passkey").hidden = data.mode !== "join" || !party;
  part("restore").hidden = (data.did ?? "").startsWith("did:key:zDn");
  part("sign").hidden = data.mode !== "sign" || !data.statement;
  describe(part("what"), data.summary ?? []);
  part("raw").textContent = data.statement ? JSON.stringify(data.statement, null, 1) : "";

  on("create", async () => {
    const passphrase = part("pass").value;
    if (passphrase.length < PASSPHRASE_MIN) throw Error("short_pass");
    const code = parseCode(part("code").value);
    const made = await create(passphrase);
    const sent = await redemption(code, made.did, ed25519(made.privateKey));
    part("pass").value = "";
    part("code").value = "";
    download("coop-recovery.json", made.file);
    say(data.text.created);
    fire("enrolled", sent);
  });
  on("dopasskey", async () => {
    const code = parseCode(part("code").value);
    const did = await createPasskey(party);
    say(data.text.again);
    const kept = await keys("readonly", (store) => store.get(did));
    const sent = await redemption(code, did, passkey(party, kept));
    part("code").value = "";
    say(data.text.created_passkey);
    fire("enrolled", sent);
  });
  on("dosign", async () => {
    const kept = await keys("readonly", (store) => store.get(data.did));
    const byPasskey = data.did.startsWith("did:key:zDn"); // P-256 as a did:key
    if (byPasskey && !party) throw Error("no_portal");
    if (!byPasskey && !kept) throw Error("no_key");
    const sign = byPasskey ? passkey(party, kept) : ed25519(kept);
    const signature = await sign(await toSign(data.statement));
    say(data.text.signed);
    fire("signed", { did: data.did, signature: base64url(signature) });
  });
  on("bring", async () => {
    await restore(await part("file").files[0].text(), part("pass2").value);
    part("pass2").value = "";
    say(data.text.restored);
  });
}
