"""The commands of the page examples/audit, typed as they stand there.

moto stands in for the services that the stack is made of. Of the template it leaves out the trail and the
policies of bucket and topic; Terraform has them made.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import boto3
import pytest
from fences import fence
from moto.server import ThreadedMotoServer

AUDIT = pathlib.Path(__file__).parents[1] / "audit"
NAME = "mariadb-encryption-key"
RULES = {f"{NAME}-{word}" for word in ("used", "denied", "changed", "gone")}


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """An account, and a copy of the folder in which to work."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "an example's secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Where the AWS CLI of these tests is.
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(shutil.copytree(AUDIT, tmp_path / "audit"))
    yield boto3
    server.stop()


def typed(commands, answer=""):
    done = subprocess.run(
        ["sh", "-ec", commands], input=answer, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(aws):
    """State and number of targets of each rule."""
    events = aws.client("events")
    return {
        rule["Name"]: (rule["State"], len(events.list_targets_by_rule(Rule=rule["Name"])["Targets"]))
        for rule in events.list_rules()["Rules"]
    }


def assert_tells_of_the_key(aws):
    listed = rules(aws)
    assert listed.keys() == RULES
    assert all(targets == 1 for _, targets in listed.values()), listed
    [subscription] = aws.client("sns").list_subscriptions()["Subscriptions"]
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "dba@example.com")


def test_cloudformation_deploys_and_removes_the_stack(aws):
    assert "Successfully created" in typed(fence("audit-deploy"))
    [stack] = aws.client("cloudformation").describe_stacks(StackName=NAME)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert_tells_of_the_key(aws)
    typed(f"aws events disable-rule --name {NAME}-used")
    assert rules(aws)[f"{NAME}-used"][0] == "DISABLED"
    typed(fence("audit-remove"))
    assert rules(aws) == {}


@pytest.mark.skipif("WITH_TERRAFORM" not in os.environ, reason="no terraform with its AWS provider")
def test_terraform_applies_the_configuration(aws):
    assert "Apply complete!" in typed(fence("audit-deploy-terraform"), "yes\n")
    assert_tells_of_the_key(aws)
    [trail] = aws.client("cloudtrail").describe_trails()["trailList"]
    assert (trail["Name"], trail["LogFileValidationEnabled"]) == (NAME, True)
    assert aws.client("cloudtrail").get_trail_status(Name=NAME)["IsLogging"]
    policy = aws.client("s3").get_bucket_policy(Bucket=trail["S3BucketName"])["Policy"]
    assert "cloudtrail.amazonaws.com" in policy
