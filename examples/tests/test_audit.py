"""Which calls the rules of examples/audit tell of, in which words, and that both forms of it are one.

The rules come out of the CloudFormation template itself. Whether a pattern matches is decided by
LocalStack's EventBridge; the records are those that local-aws writes, and AWS's documented ones.
"""

import json
import pathlib
import re

import botocore.exceptions
import hcl2
import pytest
from cfnlint.decode import cfn_yaml
from localstack.services.events.event_rule_engine import EventPatternCompiler, EventRuleEngine
from support import ACCOUNT, KEY_ARN_PREFIX, LocalAws

AUDIT = pathlib.Path(__file__).parents[1] / "audit"
TEMPLATE = cfn_yaml.load(str(AUDIT / "cloudformation.yaml"))
RULES = {
    name.lower(): resource["Properties"]
    for name, resource in TEMPLATE["Resources"].items()
    if resource["Type"] == "AWS::Events::Rule"
}
# A rule that is merely ENABLED gets no events of calls that only read.
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-service-event-cloudtrail-management.html
WITH_READING = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"

SAMPLE_KEY = "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SAMPLE_ALIAS = "arn:aws:kms:us-west-2:111122223333:alias/my_alias"
OTHER_KEY = "arn:aws:kms:us-west-2:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"


def rules_that_tell(event, keys):
    """The names of the rules that the event of EventBridge reaches, if the stack is for these keys."""
    return {
        name
        for name, rule in RULES.items()
        if (rule["State"] == WITH_READING or not event["detail"].get("readOnly"))
        and matches(resolved(rule["EventPattern"], keys), event)
    }


def matches(pattern, event):
    compiled = EventPatternCompiler().compile_event_pattern(pattern)
    return EventRuleEngine().evaluate_pattern_on_event(compiled, event)


def resolved(value, keys):
    """The value with the parameter KeyArns put in."""
    if isinstance(value, dict):
        if value == {"Ref": "KeyArns"}:
            return keys
        return {name: resolved(item, keys) for name, item in value.items()}
    return [resolved(item, keys) for item in value] if isinstance(value, list) else value


def api_call(record):
    """A record of CloudTrail as EventBridge delivers it."""
    return {
        "version": "0",
        "id": record["eventID"],
        "detail-type": "AWS API Call via CloudTrail",
        "source": "aws." + record["eventSource"].split(".")[0],
        "account": record["recipientAccountId"],
        "time": record["eventTime"],
        "region": record["awsRegion"],
        "resources": [],
        "detail": record,
    }


class Scene:
    """A local-aws with keys, of which the stack is for the first two, and callers."""

    def __init__(self):
        self.aws = LocalAws("--user", "first").serve()
        self.aws.run("user", "mariadb")
        nothing = {"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}
        self.aws.run("user", "thief", "--policy", self.aws.write("n.json", {"Statement": nothing}))
        self.kms, self.sts = (self.client(service, "mariadb") for service in ("kms", "sts"))
        self.thief_kms, self.thief_sts = (self.client(service, "thief") for service in ("kms", "sts"))
        made = [self.kms.create_key()["KeyMetadata"] for _ in range(3)]
        self.key, self.disabled_key, self.other_key = (key["KeyId"] for key in made)
        self.watched = [key["Arn"] for key in made[:2]]
        self.blobs = {
            key["KeyId"]: self.kms.encrypt(KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
            for key in made
        }
        self.kms.disable_key(KeyId=self.disabled_key)

    def client(self, service, user):
        return self.aws.client(service, self.aws.long_term(user))

    def event_of(self, call):
        """Makes the call, which may fail; the event of its record."""
        try:
            call(self)
        except botocore.exceptions.ClientError:
            pass
        return api_call(self.aws.records()[-1])


@pytest.fixture(scope="module")
def scene():
    scene = Scene()
    yield scene
    scene.aws.remove()


def decrypt(kms, scene, key):
    kms.decrypt(CiphertextBlob=scene.blobs[key])


def session_with_a_code_of_long_ago(scene):
    scene.aws.session("mariadb", steps=-20)


def put_policy(scene, key):
    policy = scene.kms.get_key_policy(KeyId=key)["Policy"]
    scene.kms.put_key_policy(KeyId=key, Policy=policy)


def delete_new_key(scene, cancel):
    """With a key of its own: nothing else can be done with it afterwards."""
    kms = scene.kms
    key = kms.create_key()["KeyMetadata"]
    scene.watched.append(key["Arn"])
    kms.schedule_key_deletion(KeyId=key["KeyId"])
    if cancel:
        kms.cancel_key_deletion(KeyId=key["KeyId"])


# A call in local-aws, and the rule that tells of it, if one does.
CALLS = {
    "unwrapping a data key": (lambda s: decrypt(s.kms, s, s.key), "used"),
    "making a data key": (
        lambda s: s.kms.generate_data_key_without_plaintext(KeyId=s.key, KeySpec="AES_128"),
        "used",
    ),
    "making a data key in plaintext": (
        lambda s: s.kms.generate_data_key(KeyId=s.key, KeySpec="AES_128"),
        "used",
    ),
    "encrypting": (lambda s: s.kms.encrypt(KeyId=s.key, Plaintext=b"x"), "used"),
    "re-encrypting to another key": (
        lambda s: s.kms.re_encrypt(CiphertextBlob=s.blobs[s.key], DestinationKeyId=s.other_key),
        "used",
    ),
    "unwrapping under a disabled key": (lambda s: decrypt(s.kms, s, s.disabled_key), "used"),
    "unwrapping under another key": (lambda s: decrypt(s.kms, s, s.other_key), None),
    "unwrapping without permission": (lambda s: decrypt(s.thief_kms, s, s.key), "denied"),
    "unwrapping under another key without permission": (
        lambda s: decrypt(s.thief_kms, s, s.other_key),
        None,
    ),
    "describing without permission": (lambda s: s.thief_kms.describe_key(KeyId=s.key), "denied"),
    "disabling without permission": (lambda s: s.thief_kms.disable_key(KeyId=s.key), "denied"),
    "making a key without permission": (lambda s: s.thief_kms.create_key(), "denied"),
    "a session with a wrong code": (session_with_a_code_of_long_ago, "denied"),
    "a session with a code": (lambda s: s.aws.session("mariadb"), None),
    "a session without a code": (lambda s: s.aws.session("mariadb", mfa=False), None),
    "assuming a role that there is not": (
        lambda s: s.thief_sts.assume_role(
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/mariadb-server", RoleSessionName="db1"
        ),
        "denied",
    ),
    "asking who one is": (lambda s: s.sts.get_caller_identity(), None),
    "disabling": (lambda s: s.kms.disable_key(KeyId=s.disabled_key), "changed"),
    "enabling": (lambda s: s.kms.enable_key(KeyId=s.key), "changed"),
    "putting a policy": (lambda s: put_policy(s, s.key), "changed"),
    "scheduling deletion": (lambda s: delete_new_key(s, cancel=False), "changed"),
    "cancelling deletion": (lambda s: delete_new_key(s, cancel=True), "changed"),
    "naming": (
        lambda s: s.kms.create_alias(AliasName="alias/new", TargetKeyId=s.key),
        "changed",
    ),
    "enabling another key": (lambda s: s.kms.enable_key(KeyId=s.other_key), None),
    "putting a policy on another key": (lambda s: put_policy(s, s.other_key), None),
    "describing": (lambda s: s.kms.describe_key(KeyId=s.key), None),
    "reading the policy": (lambda s: s.kms.get_key_policy(KeyId=s.key), None),
    "listing aliases": (lambda s: s.kms.list_aliases(), None),
    "making another key": (lambda s: s.kms.create_key(), None),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_told_by_its_rule_alone(scene, call):
    make, rule = CALLS[call]
    event = scene.event_of(make)
    assert rules_that_tell(event, scene.watched) == ({rule} if rule else set()), event


def sample(name, *resources, read_only=False, source="kms.amazonaws.com", **more):
    """The event of a record as in AWS's examples of KMS's log entries.

    https://docs.aws.amazon.com/kms/latest/developerguide/understanding-kms-entries.html
    """
    record = {
        "eventVersion": "1.05",
        "userIdentity": {
            "type": "IAMUser",
            "principalId": "EX_PRINCIPAL_ID",
            "arn": "arn:aws:iam::111122223333:user/Alice",
            "accountId": "111122223333",
            "accessKeyId": "EXAMPLE_KEY_ID",
            "userName": "Alice",
        },
        "eventTime": "2020-07-27T22:58:24Z",
        "eventSource": source,
        "eventName": name,
        "awsRegion": "us-west-2",
        "sourceIPAddress": "192.0.2.0",
        "userAgent": "AWS Internal",
        "requestParameters": None,
        "responseElements": None,
        "requestID": "12345126-30d5-4b28-98b9-9153da559963",
        "eventID": "abcde202-ba1a-467c-b4ba-f729d45ae521",
        "readOnly": read_only,
        "eventType": "AwsApiCall",
        "recipientAccountId": "111122223333",
        **more,
    }
    if resources:
        record["resources"] = [
            {"ARN": arn, "accountId": "111122223333", "type": "AWS::KMS::Key"} for arn in resources
        ]
    return api_call(record)


def lifecycle(detail_type, key):
    """An event that KMS itself sends: https://docs.aws.amazon.com/kms/latest/developerguide/kms-events.html"""
    return {
        "version": "0",
        "id": "e9ce3425-7d22-412a-a699-e7a5fc3fbc9a",
        "detail-type": detail_type,
        "source": "aws.kms",
        "account": "111122223333",
        "time": "2022-08-10T16:37:50Z",
        "region": "us-west-2",
        "resources": [key],
        "detail": {"key-id": key.rsplit("/", 1)[1]},
    }


def refused(code="AccessDenied"):
    return {"errorCode": code, "errorMessage": "User: arn is not authorized to perform: kms:Decrypt"}


DOCUMENTED = {
    "Decrypt": (sample("Decrypt", SAMPLE_KEY, read_only=True), "used"),
    "Decrypt of another key's": (
        sample("Decrypt", SAMPLE_KEY, read_only=True, errorCode="IncorrectKeyException"),
        "used",
    ),
    "GenerateDataKeyPairWithoutPlaintext": (
        sample("GenerateDataKeyPairWithoutPlaintext", SAMPLE_KEY, read_only=True),
        "used",
    ),
    "refused": (sample("Decrypt", SAMPLE_KEY, read_only=True, **refused()), "denied"),
    "refused in KMS's word": (
        sample("Decrypt", SAMPLE_KEY, read_only=True, **refused("AccessDeniedException")),
        "denied",
    ),
    "refused without a key's name": (sample("Decrypt", read_only=True, **refused()), "denied"),
    "refused for another key": (sample("Decrypt", OTHER_KEY, read_only=True, **refused()), None),
    "refused at S3": (
        sample("GetObject", read_only=True, source="s3.amazonaws.com", **refused()),
        None,
    ),
    "wrong MFA code": (
        sample(
            "GetSessionToken",
            read_only=True,
            source="sts.amazonaws.com",
            errorCode="AccessDenied",
            errorMessage="MultiFactorAuthentication failed with invalid MFA one time pass code.",
        ),
        "denied",
    ),
    "UpdateAlias away from the key": (sample("UpdateAlias", SAMPLE_ALIAS, OTHER_KEY), "changed"),
    "DeleteAlias": (sample("DeleteAlias", SAMPLE_ALIAS, SAMPLE_KEY), "changed"),
    "DeleteAlias of another key": (sample("DeleteAlias", SAMPLE_ALIAS, OTHER_KEY), None),
    "DeleteImportedKeyMaterial": (sample("DeleteImportedKeyMaterial", SAMPLE_KEY), "changed"),
    "ImportKeyMaterial": (sample("ImportKeyMaterial", SAMPLE_KEY), "changed"),
    "CreateGrant": (sample("CreateGrant", SAMPLE_KEY), "changed"),
    "DisableKeyRotation": (sample("DisableKeyRotation", SAMPLE_KEY), "changed"),
    "EnableKeyRotation": (sample("EnableKeyRotation", SAMPLE_KEY), "changed"),
    "RotateKeyOnDemand": (sample("RotateKeyOnDemand", SAMPLE_KEY), "changed"),
    "ReplicateKey": (sample("ReplicateKey", SAMPLE_KEY), "changed"),
    "UpdatePrimaryRegion": (sample("UpdatePrimaryRegion", SAMPLE_KEY), "changed"),
    "DisableKey that failed": (
        sample("DisableKey", SAMPLE_KEY, errorCode="KMSInvalidStateException"),
        None,
    ),
    "TagResource": (sample("TagResource", SAMPLE_KEY), None),
    "deletion": (lifecycle("KMS CMK Deletion", SAMPLE_KEY), "gone"),
    "deletion of another key": (lifecycle("KMS CMK Deletion", OTHER_KEY), None),
    "expiration": (lifecycle("KMS Imported Key Material Expiration", SAMPLE_KEY), "gone"),
    "rotation by AWS": (lifecycle("KMS CMK Rotation", SAMPLE_KEY), None),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_event_is_told_by_its_rule_alone(name):
    event, rule = DOCUMENTED[name]
    assert rules_that_tell(event, [SAMPLE_KEY]) == ({rule} if rule else set())


def test_every_call_of_every_rule_is_tried():
    tried = {event["detail"].get("eventName") for event, rule in DOCUMENTED.values() if rule}
    tried.update(("DisableKey", "EnableKey", "PutKeyPolicy", "CreateAlias"))  # with local-aws
    tried.update(("ScheduleKeyDeletion", "CancelKeyDeletion"))
    first, last = RULES["changed"]["EventPattern"]["detail"]["$or"]
    assert set(first["eventName"] + last["eventName"]) <= tried


def email(rule, event):
    """The lines of the e-mail: a variable whose path leads nowhere is left out."""
    transformer = RULES[rule]["Targets"][0]["InputTransformer"]

    def value(path):
        found = event
        for name, index in re.findall(r"\.([\w-]+)|\[(\d+)\]", path):
            try:
                found = found[int(index) if index else name]
            except (KeyError, IndexError):
                return ""
        return found

    paths = {name: value(path) for name, path in transformer["InputPathsMap"].items()}
    lines = [json.loads(line) for line in transformer["InputTemplate"].splitlines()]
    return [re.sub("<([a-z]+)>", lambda found: paths.pop(found[1], ""), line) for line in lines]


@pytest.mark.parametrize("rule", RULES)
def test_an_email_uses_all_variables_and_no_others(rule):
    transformer = RULES[rule]["Targets"][0]["InputTransformer"]
    used = set(re.findall("<([^>]*)>", transformer["InputTemplate"]))
    assert used == set(transformer["InputPathsMap"])


@pytest.mark.parametrize(
    ("rule", "call", "first_line"),
    [
        ("used", "unwrapping under a disabled key", "MASTER KEY USED: Decrypt DisabledException"),
        ("denied", "unwrapping without permission", "ACCESS DENIED: Decrypt"),
        ("changed", "scheduling deletion", "MASTER KEY CHANGED: ScheduleKeyDeletion"),
    ],
)
def test_an_email_says_what_who_whence_and_when(scene, rule, call, first_line):
    event = scene.event_of(CALLS[call][0])
    lines = email(rule, event)
    assert lines[0] == first_line
    text = "\n".join(lines)
    record = event["detail"]
    for fact in (
        record["userIdentity"]["arn"],
        "from 127.0.0.1",
        record["resources"][0]["ARN"],
        record["eventTime"],
        record["eventID"],
        record.get("errorMessage", "") if rule == "denied" else "",
    ):
        assert fact in text


def test_an_email_of_a_deletion_names_the_key():
    event, _ = DOCUMENTED["deletion"]
    assert email("gone", event)[:2] == ["MASTER KEY GONE: KMS CMK Deletion", f"Key: {SAMPLE_KEY}"]


def test_only_the_rules_of_the_stack_may_publish():
    statement = TEMPLATE["Resources"]["TopicPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert [(one["Principal"], one["Action"]) for one in statement] == [
        ({"Service": "events.amazonaws.com"}, "sns:Publish")
    ]
    sources = statement[0]["Condition"]["ArnEquals"]["aws:SourceArn"]
    assert {source["Fn::GetAtt"][0].lower() for source in sources} == set(RULES)


# Terraform ------------------------------------------------------------------------------------------

TERRAFORM_TYPES = {
    "AWS::CloudTrail::Trail": {"aws_cloudtrail"},
    "AWS::Events::Rule": {"aws_cloudwatch_event_rule", "aws_cloudwatch_event_target"},
    "AWS::S3::Bucket": {
        "aws_s3_bucket",
        "aws_s3_bucket_lifecycle_configuration",
        "aws_s3_bucket_ownership_controls",
        "aws_s3_bucket_public_access_block",
        "aws_s3_bucket_server_side_encryption_configuration",
        "aws_s3_bucket_versioning",
    },
    "AWS::S3::BucketPolicy": {"aws_s3_bucket_policy"},
    "AWS::SNS::Topic": {"aws_sns_topic", "aws_sns_topic_subscription"},
    "AWS::SNS::TopicPolicy": {"aws_sns_topic_policy"},
}


def terraform(name):
    options = hcl2.SerializationOptions(strip_string_quotes=True, with_comments=False)
    with open(AUDIT / "terraform" / name, encoding="utf-8") as file:
        return hcl2.load(file, serialization_options=options)


def test_terraform_has_the_same_rules():
    rules = terraform("rules.tf")["locals"][0]["rules"]
    assert rules.keys() == RULES.keys()
    for name, rule in RULES.items():
        transformer = rule["Targets"][0]["InputTransformer"]
        assert rules[name] == {
            "description": rule["Description"],
            "state": rule["State"],
            "event_pattern": resolved(rule["EventPattern"], "${var.key_arns}"),
            "input_paths": transformer["InputPathsMap"],
            "input_template": [json.loads(line) for line in transformer["InputTemplate"].splitlines()],
        }


def test_terraform_has_the_same_parameters_and_resources():
    main = terraform("main.tf")
    variables = {name: body for block in main["variable"] for name, body in block.items()}
    parameters = {
        re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower(): body.get("Default")
        for name, body in TEMPLATE["Parameters"].items()
    }
    assert {name.strip('"'): body.get("default") for name, body in variables.items()} == parameters
    types = {name.strip('"') for block in main["resource"] for name in block}
    wanted = (TERRAFORM_TYPES[one["Type"]] for one in TEMPLATE["Resources"].values())
    assert types == set().union(*wanted)
