# Configurations that are refused, each with a part of the message.
{
  misspelt-action = {
    config.permission.bash = "denied";
    message = "opencode.permission";
  };
  order-in-a-set = {
    config.permission.bash = {
      "git *" = "allow";
      "git push*" = "deny";
    };
    message = "opencode.permission: `git *` and `git push*` under bash may match the same thing; the last match wins, and an attribute set has no order: write the rules as a list of { tool, pattern, action }";
  };
  order-of-tools-in-a-set = {
    config.permission = {
      "tickets_*" = "deny";
      tickets_read = "allow";
    };
    message = "`tickets_*` and `tickets_read` may match the same thing";
  };
  home-in-a-set = {
    config.permission.external_directory = {
      "~/a/*" = "allow";
      "/home/*" = "deny";
    };
    message = "`/home/*` and `~/a/*` under external_directory may match the same thing";
  };
  rules-apart = {
    config.permission = [
      {
        tool = "bash";
        action = "ask";
      }
      {
        tool = "*";
        action = "deny";
      }
      {
        tool = "bash";
        pattern = "ls";
        action = "allow";
      }
    ];
    message = "the rules for bash stand in two places";
  };
  rule-twice = {
    config.agent.build.permission = [
      {
        tool = "bash";
        action = "ask";
      }
      {
        tool = "bash";
        action = "allow";
      }
    ];
    message = "opencode.agent.build.permission: two rules for bash `*`";
  };
  number-as-pattern = {
    config.permission = [
      {
        tool = "bash";
        pattern = "1";
        action = "allow";
      }
    ];
    message = "the pattern `1` for bash cannot keep its place";
  };
  pattern-without-meaning = {
    config.permission.webfetch."https://example.org/*" = "allow";
    message = "opencode takes no patterns for webfetch, only an action";
  };
  rule-without-action = {
    config.permission = [ { tool = "bash"; } ];
    message = "action";
  };
  mcp-without-type = {
    config.mcp.x.command = [ "x" ];
    message = "opencode.mcp.x: set `type`";
  };
  mcp-local-with-url = {
    config.mcp.x = {
      type = "local";
      command = [ "x" ];
      url = "https://example.org";
    };
    message = "opencode.mcp.x: `url` is not for a local server";
  };
  mcp-remote-without-url = {
    config.mcp.x.type = "remote";
    message = "opencode.mcp.x: a remote server needs a `url`";
  };
  mcp-command-as-text = {
    config.mcp.x = {
      type = "local";
      command = "x --stdio";
    };
    message = "opencode.mcp.x.command";
  };
  lsp-without-command = {
    config.lsp.mine.extensions = [ ".mine" ];
    message = "opencode.lsp.mine: a language server needs a `command`";
  };
  command-without-template = {
    config.command.test.description = "x";
    message = "opencode.command.test.template";
  };
  share-misspelt = {
    config.share = "never";
    message = "opencode.share";
  };
  color = {
    config.agent.build.color = "red";
    message = "opencode.agent.build.color";
  };
  port = {
    config.server.port = 70000;
    message = "opencode.server.port";
  };
  reference-without-place = {
    config.references.docs.branch = "main";
    message = "opencode.references.docs: a reference has either a `path` or a `repository`";
  };
  plugin = {
    config.plugin = [ [ "x" ] ];
    message = "opencode.plugin";
  };
  timeout = {
    config.provider.local.options.timeout = 0;
    message = "opencode.provider.local.options.timeout";
  };
}
