"""The stack of examples/aws-account, made with the commands of its page, in both forms.

moto stands in for the services that the stack is made of. What the key policy allows is decided by local-aws.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.request

import boto3
import hcl2
import pytest
from cfnlint.decode import cfn_yaml
from moto.kms.models import kms_backends
from moto.server import ThreadedMotoServer
from test_policies import ADMINISTER, ANY, BOTH, MFA, SWITCH, USE, Account, Key

STACK = pathlib.Path(__file__).parents[1] / "aws-account"
TEMPLATE = cfn_yaml.load(str(STACK / "cloudformation.yaml"))
WRAPPER = pathlib.Path(os.environ["LOCAL_AWS"]).with_name("iam-kms-wrapper")
MOTO_ACCOUNT, LOCAL_ACCOUNT = "123456789012", "111122223333"
DEVICE = f"arn:aws:iam::{MOTO_ACCOUNT}:mfa/mariadb"
FORMS = [
    "cloudformation",
    pytest.param(
        "terraform",
        marks=pytest.mark.skipif(
            "WITH_TERRAFORM" not in os.environ, reason="no terraform with its AWS provider"
        ),
    ),
]


def block(beginning):
    """The block of commands of the page that begins so."""
    page = (STACK / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    [found] = [block for block in blocks if block.lstrip().startswith(beginning)]
    return found


def typed(commands, answer=""):
    done = subprocess.run(
        ["sh", "-ec", commands], input=answer, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=FORMS, scope="module")
def outputs(request, tmp_path_factory):
    """An account in which the stack was made; its outputs, with CloudFormation's names."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    # The servers of one process have one account.
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "an example's secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Where the AWS CLI of these tests is.
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        }.items():
            patch.setenv(name, value)
        patch.chdir(shutil.copytree(STACK, tmp_path_factory.mktemp("work") / "stack"))
        yield deployed(request.param)
    server.stop()


def deployed(form):
    """Makes the stack with the page's commands; its outputs."""
    if form == "terraform":
        assert "Apply complete!" in typed(block("cd terraform"), "yes\n")
        shown = json.loads(typed("terraform -chdir=terraform output -json"))
        return {camel_case(name): output["value"] for name, output in shown.items()}
    printed = typed(block("aws cloudformation create-stack"))
    # moto's CloudFormation leaves the key policy as it was read, and its KMS wants text.
    for key in kms_backends[MOTO_ACCOUNT]["us-east-1"].keys.values():
        if isinstance(key.policy, dict):
            key.policy = json.dumps(key.policy)
    return dict(line.split("\t") for line in printed.splitlines() if "\t" in line)


def camel_case(name):
    return "".join(word.capitalize() for word in name.split("_"))


def test_the_stack_has_key_alias_user_and_policies(outputs):
    kms, iam = boto3.client("kms"), boto3.client("iam")
    key = kms.describe_key(KeyId="alias/mariadb")["KeyMetadata"]
    assert outputs["KeyArn"] == key["Arn"]
    assert kms.describe_key(KeyId=outputs["MasterKey"])["KeyMetadata"]["Arn"] == key["Arn"]
    assert kms.get_key_rotation_status(KeyId=key["KeyId"])["KeyRotationEnabled"]
    assert outputs["UserName"] == "mariadb"
    assert iam.get_user(UserName="mariadb")["User"]["UserName"] == "mariadb"
    [name] = iam.list_user_policies(UserName="mariadb")["PolicyNames"]
    policy = iam.get_user_policy(UserName="mariadb", PolicyName=name)["PolicyDocument"]
    sample = (STACK.parent / "policies/iam/server-user.json").read_text(encoding="utf-8")
    wanted = json.loads(re.sub(r"arn:aws:kms:[^\"]*", key["Arn"], sample))
    assert normal(policy) == normal(wanted)


def normal(policy):
    """The statements of a policy, however it was written."""
    [statement] = policy["Statement"]
    return {**statement, "Action": sorted(statement["Action"])}


def test_the_key_policy_wants_mfa_of_the_user_and_keeps_administrators_from_using_the_key(outputs):
    policy = boto3.client("kms").get_key_policy(KeyId=outputs["KeyArn"], PolicyName="default")
    account = Account()
    try:
        account.add_user("mariadb")
        key = Key(account.admin, policy["Policy"].replace(MOTO_ACCOUNT, LOCAL_ACCOUNT))
        for kind in ANY:
            for address in BOTH:
                allowed = account.allowed("mariadb", kind, address, key)
                assert allowed == (USE if kind == MFA else set())
                administers = account.allowed("admin", kind, address, key)
                assert administers == ADMINISTER | SWITCH | {"CancelKeyDeletion", "CreateAlias"}
    finally:
        account.aws.remove()


def test_the_setup_command_is_taken_by_setup(outputs, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n", encoding="utf-8")
    program, *options = outputs["SetupCommand"].split()
    assert program == "iam-kms-wrapper"
    shown = subprocess.run(
        [WRAPPER, *options, "--dry-run"]
        + ["--access-key-id=AKIAIOSFODNN7EXAMPLE", f"--secret-access-key-file={secret}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in (
        f"kms_mfa_id = {outputs['MfaDevice']}",
        "region = us-east-1",
        f"aws-key-management-master-key-id = {outputs['MasterKey']}",
    ):
        assert f"\n    {line}\n" in shown


def test_terraform_has_the_same_parameters_and_outputs():
    options = hcl2.SerializationOptions(strip_string_quotes=True, with_comments=False)
    with open(STACK / "terraform/main.tf", encoding="utf-8") as file:
        main = hcl2.load(file, serialization_options=options)
    for kind, section, compared in (
        ("variable", "Parameters", ("default", "Default")),
        ("output", "Outputs", ("description", "Description")),
    ):
        mine, theirs = compared
        terraform = {
            camel_case(name.strip('"')): body[mine]
            for block_ in main[kind]
            for name, body in block_.items()
        }
        assert terraform == {name: body[theirs] for name, body in TEMPLATE[section].items()}


def test_the_commands_of_the_page_make_mfa_device_and_access_key_and_remove_them(outputs, request):
    iam = boto3.client("iam")
    assert outputs["MfaDevice"] == DEVICE
    typed(block("aws iam create-virtual-mfa-device"))
    typed(block("aws iam enable-mfa-device"))
    [device] = iam.list_mfa_devices(UserName="mariadb")["MFADevices"]
    assert device["SerialNumber"] == DEVICE
    key = json.loads(typed(block("aws iam create-access-key")))["AccessKey"]
    assert key["UserName"] == "mariadb"
    typed(block("aws iam list-access-keys"))
    assert iam.list_virtual_mfa_devices()["VirtualMFADevices"] == []
    # Where Terraform has made the stack, the page has other commands for what remains.
    if request.node.callspec.params["outputs"] == "cloudformation":
        assert iam.list_users()["Users"] == []
    assert boto3.client("kms").describe_key(KeyId=outputs["KeyArn"])["KeyMetadata"]["KeyState"] == "Enabled"
