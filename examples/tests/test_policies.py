"""What the policies of examples/policies allow, and that they refuse all else, in a local-aws.

Every caller tries every operation on a key of each policy, from the server's address and from another
one, with its long-term key, with a session and with a session of an MFA code.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import botocore
import botocore.exceptions
import pytest
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.credentials import InstanceMetadataProvider
from botocore.utils import InstanceMetadataFetcher
from fences import fence
from support import ACCOUNT, LocalAws, as_credentials

POLICIES = pathlib.Path(__file__).parents[1] / "policies"
SAMPLE_KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
SAMPLE_ADDRESS = "203.0.113.10/32"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/mariadb-server"

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
KEY, SESSION, MFA = "long-term-key", "session", "session-with-mfa"
USERS = ("admin", "mariadb", "MDBEncAdmin", "MDBEncOperator")
ROLE = "mariadb-server"
CALLERS = [*itertools.product(USERS, (KEY, SESSION, MFA)), (ROLE, "role")]

# What each operation of KMS is called with; blob and key are those of the test.
OPERATIONS = {
    "CancelKeyDeletion": lambda key: {"KeyId": key.id},
    "CreateAlias": lambda key: {"AliasName": f"alias/{key.id}", "TargetKeyId": key.id},
    "Decrypt": lambda key: {"CiphertextBlob": key.blob},
    "DescribeKey": lambda key: {"KeyId": key.id},
    "DisableKey": lambda key: {"KeyId": key.id},
    "EnableKey": lambda key: {"KeyId": key.id},
    "Encrypt": lambda key: {"KeyId": key.id, "Plaintext": b"x"},
    "GenerateDataKey": lambda key: {"KeyId": key.id, "KeySpec": "AES_256"},
    "GenerateDataKeyWithoutPlaintext": lambda key: {"KeyId": key.id, "KeySpec": "AES_256"},
    "GetKeyPolicy": lambda key: {"KeyId": key.id},
    "PutKeyPolicy": lambda key: {"KeyId": key.id, "Policy": key.policy},
    "ReEncrypt": lambda key: {"CiphertextBlob": key.blob, "DestinationKeyId": key.id},
    "ScheduleKeyDeletion": lambda key: {"KeyId": key.id},
}
# Errors that come only after the caller was found to be allowed.
ALLOWED_BUT = ("AlreadyExistsException", "KMSInvalidStateException")

USE = {"Decrypt", "GenerateDataKeyWithoutPlaintext"}
SWITCH = {"DescribeKey", "DisableKey", "EnableKey"}
CARE = {"Decrypt", "DescribeKey", "Encrypt", "ReEncrypt"}
ADMINISTER = {"DescribeKey", "GetKeyPolicy", "PutKeyPolicy"}
ANY = (KEY, SESSION, MFA)
BOTH = (HERE, ELSEWHERE)

# Key policy, caller, credentials, addresses: what is allowed. All else is refused. Here "admin" may do
# everything by its identity policy, and the other callers nothing.
BY_KEY_POLICY = [
    ("source-ip", "admin", ANY, BOTH, ADMINISTER | SWITCH),
    ("source-ip", "mariadb", ANY, (HERE,), USE),
    ("mfa", "admin", ANY, BOTH, ADMINISTER | SWITCH),
    ("mfa", "mariadb", (MFA,), BOTH, USE),
    ("enable-disable-admin", "admin", ANY, BOTH, ADMINISTER),
    ("enable-disable-admin", "MDBEncAdmin", (MFA,), BOTH, SWITCH),
    ("enable-disable-admin", "mariadb", ANY, BOTH, USE),
    ("production", "admin", ANY, BOTH, ADMINISTER | {"CancelKeyDeletion", "CreateAlias"}),
    ("production", "MDBEncAdmin", (MFA,), BOTH, SWITCH),
    ("production", "mariadb", (MFA,), (HERE,), USE),
    ("production", "mariadb-server", ("role",), (HERE,), USE),
    ("production", "MDBEncOperator", (MFA,), (HERE,), CARE),
    ("production", "MDBEncOperator", (MFA,), (ELSEWHERE,), {"DescribeKey"}),
]
KEY_POLICIES = sorted({row[0] for row in BY_KEY_POLICY})

# Identity policy, caller, credentials: what is allowed on a key that leaves it to the account, from
# any address. All else, and all on another key, is refused.
BY_IDENTITY_POLICY = [
    ("server-user", "mariadb", (MFA,), USE),
    ("server-user-assume-role", "mariadb", (), set()),
    ("server-role", "mariadb-server", ("role",), USE),
    ("enable-disable-admin", "MDBEncAdmin", (MFA,), SWITCH),
    ("data-key-operator", "MDBEncOperator", (MFA,), CARE),
]

# Trust policy, caller, credentials, whether a code comes with the call: whether the role may be assumed.
BY_TRUST_POLICY = [
    ("server-role-trust-mfa", "mariadb", KEY, True, True),
    ("server-role-trust-mfa", "mariadb", KEY, False, False),
    ("server-role-trust-mfa", "mariadb", SESSION, False, False),
    ("server-role-trust-mfa", "mariadb", MFA, False, True),
    ("server-role-trust-mfa", "admin", KEY, True, False),
    ("server-role-trust-mfa", "admin", MFA, False, False),
    ("server-role-trust-ec2", "mariadb", KEY, True, False),
    ("server-role-trust-ec2", "admin", KEY, True, False),
]


NOTHING = {"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}


class Account:
    """A local-aws with a user "admin", who may do everything."""

    def __init__(self, *serve_arguments):
        self.aws = LocalAws("--user", "first").serve(*serve_arguments)
        self.aws.run("user", "admin")
        self.admin = self.aws.client("kms", self.aws.long_term("admin"))
        self.nothing = self.aws.write("nothing.json", {"Statement": NOTHING})
        self.known, self.clients = {}, {}

    def add_user(self, name, policy=None):
        self.aws.run("user", name, "--policy", policy or self.nothing)

    def add_role(self, trust="server-role-trust-mfa", policy=None):
        trust = str(POLICIES / f"iam/{trust}.json")
        self.aws.run("role", ROLE, "--trust", trust, "--policy", policy or self.nothing)

    def credentials(self, caller, kind):
        """Made once: a code is taken once."""
        if (caller, kind) not in self.known:
            if caller == ROLE:
                made = self.assume_role("mariadb", MFA)
            elif kind == KEY:
                made = self.aws.long_term(caller)
            else:
                made = self.aws.session(caller, mfa=kind == MFA)
            self.known[caller, kind] = made
        return self.known[caller, kind]

    def assume_role(self, caller, kind, code=False):
        """Credentials of the role's session."""
        sts = self.aws.client("sts", self.credentials(caller, kind))
        parameters = {"RoleArn": ROLE_ARN, "RoleSessionName": "db1"}
        if code:
            parameters["SerialNumber"] = self.aws.serial_number(caller)
            parameters["TokenCode"] = self.aws.code(caller)
        return as_credentials(sts.assume_role(**parameters))

    def allowed(self, caller, kind, address, key):
        """Which operations the caller may do on the key."""
        who = (caller, kind, address)
        if who not in self.clients:
            kms = self.aws.client("kms", self.credentials(caller, kind))
            self.clients[who] = from_address(kms, address)
        kms = self.clients[who]
        return {operation for operation in OPERATIONS if is_allowed(kms, operation, key)}


class Key:
    """A new key, something that was encrypted under it, and then its policy; the account's without one."""

    def __init__(self, admin, policy=None):
        self.id = admin.create_key()["KeyMetadata"]["KeyId"]
        self.blob = admin.encrypt(KeyId=self.id, Plaintext=b"x")["CiphertextBlob"]
        self.policy = policy or admin.get_key_policy(KeyId=self.id)["Policy"]
        # Also one that lacks the statement which lets the account administer the key.
        admin.put_key_policy(
            KeyId=self.id, Policy=self.policy, BypassPolicyLockoutSafetyCheck=True
        )


def from_address(client, address):
    """The client, with its requests sent from this address."""
    pool = urllib3.PoolManager(source_address=(address, 0), retries=False)

    def send(request, **_):
        answer = pool.request(
            request.method,
            request.url,
            body=request.body,
            headers=dict(request.headers),
            preload_content=False,
        )
        return AWSResponse(request.url, answer.status, answer.headers, answer)

    client.meta.events.register("before-send", send)
    return client


def is_allowed(kms, operation, key):
    call = getattr(kms, botocore.xform_name(operation))
    try:
        call(**OPERATIONS[operation](key))
    except botocore.exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        assert code in ("AccessDeniedException", *ALLOWED_BUT), error
        return code in ALLOWED_BUT
    return True


def with_the_tests_values(text, key_id=SAMPLE_KEY_ID):
    """The policy with the address that the tests come from, and the key, in the samples' place."""
    return text.replace(SAMPLE_ADDRESS, f"{HERE}/32").replace(SAMPLE_KEY_ID, key_id)


def key_policy(name):
    return with_the_tests_values((POLICIES / f"{name}.json").read_text(encoding="utf-8"))


def expected(rows, *row):
    """The operations that the table has for this; none if it has no such row."""
    found = [
        operations
        for (*first, kinds, addresses, operations) in rows
        if (*first,) == row[:-2] and row[-2] in kinds and row[-1] in addresses
    ]
    assert len(found) < 2, f"{row} is in the table twice"
    return found[0] if found else set()


@pytest.fixture(scope="module")
def account():
    account = Account()
    for user in USERS:
        if user != "admin":
            account.add_user(user)
    account.add_role()
    yield account
    account.aws.remove()


@pytest.fixture(scope="module")
def keys(account):
    return {name: Key(account.admin, key_policy(name)) for name in KEY_POLICIES}


@pytest.fixture
def empty_account():
    account = Account()
    yield account
    account.aws.remove()


@pytest.mark.parametrize("address", BOTH, ids=("here", "elsewhere"))
@pytest.mark.parametrize(("caller", "kind"), CALLERS)
@pytest.mark.parametrize("policy", KEY_POLICIES)
def test_a_key_policy_allows_this_and_nothing_else(account, keys, policy, caller, kind, address):
    allowed = account.allowed(caller, kind, address, keys[policy])
    assert allowed == expected(BY_KEY_POLICY, policy, caller, kind, address)


@pytest.mark.parametrize("policy", KEY_POLICIES)
def test_every_statement_of_a_key_policy_is_needed(account, policy):
    document = json.loads(key_policy(policy))
    for statement in document["Statement"]:
        rest = [other for other in document["Statement"] if other != statement]
        key = Key(account.admin, json.dumps({**document, "Statement": rest}))
        row = one_whom_it_concerns(statement)
        allowed = account.allowed(*row, key)
        needed = allowed != expected(BY_KEY_POLICY, policy, *row)
        assert needed, f"nothing needs {statement['Sid']!r}"


def one_whom_it_concerns(statement):
    """A caller, credentials and address: those that it allows, or, if it denies, the wrong address."""
    if statement["Effect"] == "Deny":
        return "mariadb", MFA, ELSEWHERE
    name = statement["Principal"]["AWS"].replace(":root", "/admin").rsplit("/", 1)[1]
    return name, "role" if name == ROLE else MFA, HERE


@pytest.mark.parametrize("policy", KEY_POLICIES)
def test_a_key_policy_without_its_administrators_is_refused(account, policy):
    document = json.loads(key_policy(policy))
    del document["Statement"][0]
    with pytest.raises(botocore.exceptions.ClientError, match="will not allow you to update"):
        account.admin.create_key(Policy=json.dumps(document))


@pytest.mark.parametrize(("policy", "caller", "kinds", "operations"), BY_IDENTITY_POLICY)
def test_an_identity_policy_allows_this_and_nothing_else(
    empty_account, policy, caller, kinds, operations
):
    account = empty_account
    key, other_key = Key(account.admin), Key(account.admin)
    text = (POLICIES / f"iam/{policy}.json").read_text(encoding="utf-8")
    document = json.loads(with_the_tests_values(text, key.id))
    file = account.aws.write("identity.json", document)
    account.add_user("mariadb", file if caller == "mariadb" else None)
    if caller == ROLE:
        account.add_role(policy=file)
    elif caller != "mariadb":
        account.add_user(caller, file)
    for kind in ("role",) if caller == ROLE else ANY:
        assert account.allowed(caller, kind, ELSEWHERE, other_key) == set()
        assert account.allowed(caller, kind, HERE, key) == (operations if kind in kinds else set())


@pytest.mark.parametrize(("trust", "caller", "kind", "code", "allowed"), BY_TRUST_POLICY)
def test_a_trust_policy_lets_assume_the_role(empty_account, trust, caller, kind, code, allowed):
    account = empty_account
    account.add_user("mariadb")
    account.add_role(trust)
    if allowed:
        account.assume_role(caller, kind, code)
    else:
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied.*sts:AssumeRole"):
            account.assume_role(caller, kind, code)


@pytest.mark.parametrize(
    ("trust", "allowed"), [("server-role-trust-ec2", True), ("server-role-trust-mfa", False)]
)
def test_an_instance_has_sessions_of_the_role_if_it_is_trusted(trust, allowed):
    account = Account("--machine-role", ROLE)
    try:
        account.add_user("mariadb")
        account.add_role(trust)
        fetcher = InstanceMetadataFetcher(base_url=account.aws.url + "/")
        credentials = InstanceMetadataProvider(iam_role_fetcher=fetcher).load()
    finally:
        account.aws.remove()
    assert (credentials is not None) == allowed


@pytest.mark.parametrize(
    ("policy", "allowed"), [("server-user-assume-role", True), ("server-user", False)]
)
def test_a_role_that_trusts_the_account_wants_an_identity_policy(empty_account, policy, allowed):
    account = empty_account
    account.add_user("mariadb", str(POLICIES / f"iam/{policy}.json"))
    root = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    statement = {"Effect": "Allow", "Principal": root, "Action": "sts:AssumeRole"}
    for role in (ROLE, "another"):
        trust = account.aws.write("trust.json", {"Statement": statement})
        account.aws.run("role", role, "--trust", trust)
    sts = account.aws.client("sts", account.aws.long_term("mariadb"))
    for role in (ROLE, "another"):
        call = {"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/{role}", "RoleSessionName": "db1"}
        if allowed and role == ROLE:
            sts.assume_role(**call)
        else:
            with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
                sts.assume_role(**call)


BUCKET = "arn:aws:s3:::example-keys"
MINE, OTHERS = f"{BUCKET}/mariadb/db1/1/1", f"{BUCKET}/mariadb/db2/1/1"
WITH_MFA = {"aws:MultiFactorAuthPresent": "true"}
OVER_TLS = {"aws:SecureTransport": "true"}
# A put of one request; it carries the header If-None-Match, or not.
PUT = {**OVER_TLS, "s3:ObjectCreationOperation": "true"}
ONLY_IF_NEW = {"s3:if-none-match": "*"}

# Policy for S3, action, resource, what the request carries, what the policy says.
BY_S3_POLICY = [
    ("iam/key-store", "ListBucket", BUCKET, {**WITH_MFA, "s3:prefix": "mariadb/db1/1"}, "allowed"),
    ("iam/key-store", "ListBucket", BUCKET, {**WITH_MFA, "s3:prefix": "mariadb/db1"}, "allowed"),
    ("iam/key-store", "ListBucket", BUCKET, {**WITH_MFA, "s3:prefix": "mariadb/db10/1"}, "not allowed"),
    ("iam/key-store", "ListBucket", BUCKET, {**WITH_MFA, "s3:prefix": ""}, "not allowed"),
    ("iam/key-store", "ListBucket", BUCKET, WITH_MFA, "not allowed"),
    ("iam/key-store", "ListBucket", BUCKET, {"s3:prefix": "mariadb/db1"}, "not allowed"),
    ("iam/key-store", "GetObject", MINE, WITH_MFA, "allowed"),
    ("iam/key-store", "GetObject", MINE, {}, "not allowed"),
    ("iam/key-store", "GetObject", OTHERS, WITH_MFA, "not allowed"),
    ("iam/key-store", "PutObject", MINE, WITH_MFA, "allowed"),
    ("iam/key-store", "PutObject", MINE, {}, "not allowed"),
    ("iam/key-store", "PutObject", OTHERS, WITH_MFA, "not allowed"),
    ("iam/key-store", "DeleteObject", MINE, WITH_MFA, "not allowed"),
    ("key-store-bucket", "PutObject", MINE, {**PUT, **ONLY_IF_NEW}, "not allowed"),
    ("key-store-bucket", "PutObject", MINE, PUT, "denied"),
    ("key-store-bucket", "GetObject", MINE, OVER_TLS, "not allowed"),
    ("key-store-bucket", "GetObject", MINE, {"aws:SecureTransport": "false"}, "denied"),
    ("key-store-bucket", "DeleteObject", MINE, OVER_TLS, "denied"),
    ("key-store-bucket", "DeleteObjectVersion", MINE, OVER_TLS, "denied"),
    ("key-store-bucket", "PutLifecycleConfiguration", BUCKET, OVER_TLS, "denied"),
    ("key-store-bucket", "PutBucketPolicy", BUCKET, OVER_TLS, "not allowed"),
]


@pytest.mark.parametrize(("policy", "action", "resource", "context", "says"), BY_S3_POLICY)
def test_what_a_policy_for_the_key_store_says(policy, action, resource, context, says):
    kind = "identity" if policy.startswith("iam/") else "bucket"
    answer = subprocess.run(
        [
            os.environ["LOCAL_AWS"],
            "simulate",
            f"--policy={POLICIES / policy}.json",
            f"--kind={kind}",
            f"--action=s3:{action}",
            f"--resource={resource}",
            f"--principal=arn:aws:iam::{ACCOUNT}:user/mariadb",
            *(f"--context={key}={value}" for key, value in context.items()),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout == f"{says}\n"


def test_every_policy_and_every_action_is_in_the_tables():
    names = {str(path.relative_to(POLICIES))[: -len(".json")] for path in POLICIES.rglob("*.json")}
    for_s3 = {row[0] for row in BY_S3_POLICY}
    assert for_s3 <= names
    names -= for_s3
    tested = {*KEY_POLICIES}
    tested.update(f"iam/{row[0]}" for row in BY_IDENTITY_POLICY + BY_TRUST_POLICY)
    assert names == tested
    for name in names:
        document = json.loads((POLICIES / f"{name}.json").read_text(encoding="utf-8"))
        for statement in document["Statement"]:
            actions = statement["Action"]
            for action in actions if isinstance(actions, list) else [actions]:
                assert "*" not in action or statement["Effect"] == "Deny", action
                operation = re.sub("ReEncrypt(From|To|[*])", "ReEncrypt", action.split(":")[1])
                assert operation.rstrip("*") in (*OPERATIONS, "AssumeRole"), action


def test_the_commands_of_the_page_install_the_policies():
    commands = fence("policies-install")
    account, region = "444455556666", "eu-central-1"
    aws = LocalAws("--user", "first", "--account", account, "--region", region).serve()
    try:
        for user in USERS:
            aws.run("user", user)
        trust = POLICIES / "iam/server-role-trust-mfa.json"
        trust = aws.write("trust.json", json.loads(trust.read_text().replace(ACCOUNT, account)))
        aws.run("role", ROLE, "--trust", trust)
        kms = aws.client("kms", region=region)
        metadata = kms.describe_key(KeyId="alias/mariadb")["KeyMetadata"]
        environment = {
            **os.environ,
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_SHARED_CREDENTIALS_FILE": os.path.join(aws.state, "credentials"),
        }
        own = {"KEY_ARN": metadata["Arn"], "ADDRESS": "198.51.100.7/32"}
        for name, value in own.items():
            commands, count = re.subn(f"(?m)^{name}=.*$", f"{name}={value}", commands)
            assert count == 1, name
        subprocess.run(
            ["sh", "-euc", commands], cwd=POLICIES, env=environment, check=True
        )
        policy = kms.get_key_policy(KeyId=metadata["KeyId"])["Policy"]
    finally:
        aws.remove()
    assert account in policy and "198.51.100.7/32" in policy
    assert ACCOUNT not in policy and SAMPLE_ADDRESS not in policy
