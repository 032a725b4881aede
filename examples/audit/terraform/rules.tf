# What they are about ------------------------------------------------------------------------------

locals {
  rules = {
    used = {
      description = "Data keys were made, wrapped or unwrapped, or the attempt failed; refusals have a rule of their own."
      # Decrypt and its like count as reading, of which a rule that is merely ENABLED hears nothing.
      state = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"
      event_pattern = {
        source        = ["aws.kms"]
        "detail-type" = ["AWS API Call via CloudTrail"]
        detail = {
          eventSource = ["kms.amazonaws.com"]
          eventName   = ["Decrypt", "Encrypt", "ReEncrypt", { prefix = "GenerateDataKey" }]
          errorCode   = [{ exists = false }, { "anything-but" = { prefix = "AccessDenied" } }]
          resources   = { ARN = var.key_arns }
        }
      }
      input_paths = {
        event   = "$.detail.eventName"
        error   = "$.detail.errorCode"
        who     = "$.detail.userIdentity.arn"
        mfa     = "$.detail.userIdentity.sessionContext.attributes.mfaAuthenticated"
        address = "$.detail.sourceIPAddress"
        key     = "$.detail.resources[0].ARN"
        time    = "$.detail.eventTime"
        id      = "$.detail.eventID"
      }
      input_template = [
        "MASTER KEY USED: <event> <error>",
        "By <who>, from <address>, with MFA: <mfa>",
        "Key: <key>",
        "At <time>, CloudTrail's event <id>",
        "Nobody has started the server, made a table or a key? Then disable the key.",
      ]
    }
    denied = {
      description = "KMS refused a call on the key, or STS a session (a wrong MFA code, a role)."
      state       = "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"
      event_pattern = {
        source        = ["aws.kms", "aws.sts"]
        "detail-type" = ["AWS API Call via CloudTrail"]
        detail = {
          # KMS's own name is AccessDeniedException; CloudTrail has both.
          errorCode = [{ prefix = "AccessDenied" }]
          "$or" = [
            {
              eventSource = ["kms.amazonaws.com"]
              resources   = { ARN = var.key_arns }
            },
            {
              eventSource = ["kms.amazonaws.com"]
              resources   = { ARN = [{ exists = false }] }
            },
            {
              eventSource = ["sts.amazonaws.com"]
              eventName   = ["AssumeRole", "GetSessionToken"]
            },
          ]
        }
      }
      input_paths = {
        event   = "$.detail.eventName"
        message = "$.detail.errorMessage"
        who     = "$.detail.userIdentity.arn"
        mfa     = "$.detail.userIdentity.sessionContext.attributes.mfaAuthenticated"
        address = "$.detail.sourceIPAddress"
        key     = "$.detail.resources[0].ARN"
        time    = "$.detail.eventTime"
        id      = "$.detail.eventID"
      }
      input_template = [
        "ACCESS DENIED: <event>",
        "To <who>, from <address>, with MFA: <mfa>",
        "AWS said: <message>",
        "Key: <key>",
        "At <time>, CloudTrail's event <id>",
        "Nobody has mistyped a code or changed a policy? Then deactivate that user's access key.",
      ]
    }
    changed = {
      description = "The key was enabled, disabled, scheduled for deletion, or what belongs to it was changed."
      state       = "ENABLED"
      event_pattern = {
        source        = ["aws.kms"]
        "detail-type" = ["AWS API Call via CloudTrail"]
        detail = {
          eventSource = ["kms.amazonaws.com"]
          errorCode   = [{ exists = false }]
          "$or" = [
            {
              eventName = [
                "DisableKey",
                "EnableKey",
                "ScheduleKeyDeletion",
                "CancelKeyDeletion",
                "PutKeyPolicy",
                "CreateGrant",
                "DisableKeyRotation",
                "EnableKeyRotation",
                "RotateKeyOnDemand",
                "ImportKeyMaterial",
                "DeleteImportedKeyMaterial",
                "ReplicateKey",
                "UpdatePrimaryRegion",
                "CreateAlias",
                "DeleteAlias",
              ]
              resources = { ARN = var.key_arns }
            },
            { eventName = ["UpdateAlias"] },
          ]
        }
      }
      input_paths = {
        event   = "$.detail.eventName"
        who     = "$.detail.userIdentity.arn"
        mfa     = "$.detail.userIdentity.sessionContext.attributes.mfaAuthenticated"
        address = "$.detail.sourceIPAddress"
        key     = "$.detail.resources[0].ARN"
        time    = "$.detail.eventTime"
        id      = "$.detail.eventID"
      }
      input_template = [
        "MASTER KEY CHANGED: <event>",
        "By <who>, from <address>, with MFA: <mfa>",
        "Key: <key>",
        "At <time>, CloudTrail's event <id>",
        "A deletion can be cancelled while it is pending: aws kms cancel-key-deletion --key-id <key>",
      ]
    }
    gone = {
      description = "The key was deleted, or its imported material has expired, as scheduled before."
      state       = "ENABLED"
      event_pattern = {
        source        = ["aws.kms"]
        "detail-type" = ["KMS CMK Deletion", "KMS Imported Key Material Expiration"]
        resources     = var.key_arns
      }
      input_paths = {
        event = "$.detail-type"
        key   = "$.resources[0]"
        time  = "$.time"
      }
      input_template = [
        "MASTER KEY GONE: <event>",
        "Key: <key>",
        "At <time>",
        "A server that runs has its keys in memory: do not stop it, and take a logical dump now.",
      ]
    }
  }
}
