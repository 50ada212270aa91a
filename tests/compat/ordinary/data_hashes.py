"""Digests, keyed digests, derived keys and comparisons."""

import hashlib, hmac, secrets, uuid

for name in ("md5", "sha1", "sha256", "sha3_512", "blake2b", "blake2s"):
    print(name, hashlib.new(name, b"ringfence").hexdigest()[:32])
print(hashlib.shake_128(b"x").hexdigest(10), hmac.new(b"key", b"message", "sha256").hexdigest()[:32])
print(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1000).hex()[:32])
print(hashlib.scrypt(b"password", salt=b"salt", n=1024, r=8, p=1).hex()[:32])
print(len(secrets.token_bytes(33)), len(secrets.token_urlsafe(16)), secrets.token_hex(8) != secrets.token_hex(8))
print(uuid.uuid5(uuid.NAMESPACE_DNS, "example.org"), uuid.uuid4().version, hmac.compare_digest("a", "a"))
