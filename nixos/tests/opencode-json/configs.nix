# Configurations whose opencode.json is in golden/, and which `cargo xtask config-test` gives to the real server.
# Together they have every typed key.
{
  agents = {
    model = "local/large";
    small_model = "local/small";
    default_agent = "build";
    subagent_depth = 2;
    username = "agent";
    instructions = [ "/etc/rules.md" ];
    skills.paths = [ "/etc/skills" ];
    skills.urls = [ "https://example.org/skills/" ];
    agent.build = {
      temperature = 0.2;
      top_p = 0.9;
      variant = "high";
      steps = 40;
      hidden = false;
      color = "#FF5733";
      options.seed = 7;
    };
    agent.review = {
      description = "Reads";
      mode = "subagent";
      model = "local/small";
      prompt = "Read.";
      disable = false;
      color = "accent";
      permission = [
        {
          tool = "edit";
          action = "deny";
        }
        {
          tool = "bash";
          action = "ask";
        }
        {
          tool = "bash";
          pattern = "git log*";
          action = "allow";
        }
      ];
    };
    command.test = {
      template = "Run $ARGUMENTS";
      description = "Runs";
      agent = "build";
      model = "local/small";
      variant = "high";
      subtask = true;
    };
  };

  deprecated = {
    agent.old.tools.write = false;
    agent.old.maxSteps = 3;
    mode.careful = {
      prompt = "Careful.";
      permission = [
        {
          tool = "edit";
          action = "ask";
        }
        {
          tool = "bash";
          action = "ask";
        }
      ];
    };
    tools.webfetch = false;
    reference.there = "/srv/there";
    autoshare = false;
    layout = "auto";
  };

  # Null is a key that is not there.
  nulls = {
    model = null;
    agent.build.prompt = null;
    agent.build.temperature = 0;
    provider.local.options.organization = null;
    provider.local.models.small = { };
    permission = null;
    lsp = { };
  };

  # Sorted by name, the last rule would be another.
  permission-order = {
    permission = [
      {
        tool = "tickets_*";
        action = "ask";
      }
      {
        tool = "*";
        action = "ask";
      }
      {
        tool = "bash";
        action = "ask";
      }
      {
        tool = "bash";
        pattern = "git *";
        action = "allow";
      }
      {
        tool = "bash";
        pattern = "git push*";
        action = "deny";
      }
      {
        tool = "bash";
        pattern = "cat *";
        action = "allow";
      }
      {
        tool = "edit";
        action = "deny";
      }
    ];
  };

  permission-set = {
    permission = {
      webfetch = "deny";
      "*" = "ask";
      bash = {
        "ls *" = "allow";
        "!x" = "deny";
        "*" = "ask";
      };
    };
  };

  # What docs/opencode-json.md has for a server that nobody attends.
  unattended = {
    permission = [
      {
        tool = "doom_loop";
        action = "deny";
      }
      {
        tool = "question";
        action = "deny";
      }
      {
        tool = "external_directory";
        action = "deny";
      }
      {
        tool = "read";
        pattern = "*.env";
        action = "deny";
      }
      {
        tool = "read";
        pattern = "*.env.*";
        action = "deny";
      }
    ];
  };

  providers = {
    enabled_providers = [ "local" ];
    disabled_providers = [ "opencode" ];
    provider.local = {
      id = "local";
      name = "Local";
      npm = "@ai-sdk/openai-compatible";
      api = "http://192.0.2.5:8000/v1";
      env = [ "LOCAL_KEY" ];
      whitelist = [
        "large"
        "small"
      ];
      blacklist = [ "huge" ];
      options = {
        apiKey = "unused";
        baseURL = "http://192.0.2.5:8000/v1";
        enterpriseUrl = "https://github.example.org";
        setCacheKey = true;
        timeout = false;
        headerTimeout = 60000;
        chunkTimeout = 30000;
        organization = "any other key";
      };
      models.small.interleaved = true;
      models.large = {
        id = "large-2";
        name = "Large";
        family = "large";
        release_date = "2026-03-01";
        attachment = true;
        reasoning = true;
        temperature = true;
        tool_call = true;
        interleaved.field = "reasoning_content";
        cost = {
          input = 1;
          output = 2.5;
          cache_read = 0.1;
          cache_write = 0.2;
          context_over_200k = {
            input = 2;
            output = 5;
            cache_read = 0.2;
            cache_write = 0.4;
          };
        };
        limit = {
          context = 200000;
          input = 150000;
          output = 8192;
        };
        modalities.input = [
          "text"
          "image"
        ];
        modalities.output = [ "text" ];
        experimental = true;
        status = "beta";
        provider.npm = "@ai-sdk/openai";
        provider.api = "http://192.0.2.6/v1";
        options.seed = 7;
        headers.x-team = "a";
        variants.high = {
          disabled = false;
          effort = "high";
        };
      };
    };
  };

  server = {
    server = {
      port = 4096;
      hostname = "127.0.0.1";
      mdns = false;
      mdnsDomain = "opencode.local";
      cors = [ "https://ui.example.org" ];
    };
    logLevel = "INFO";
    shell = "/bin/sh";
    share = "disabled";
    autoupdate = "notify";
    snapshot = false;
    references.docs = {
      path = "/srv/docs";
      description = "Documents";
      hidden = false;
    };
    references.code = {
      repository = "https://git.example.org/code.git";
      branch = "main";
      description = "Code";
      hidden = true;
    };
    references.here = "/srv/here";
    attachment.image = {
      auto_resize = true;
      max_width = 1000;
      max_height = 1000;
      max_base64_bytes = 1000000;
    };
    tool_output.max_lines = 100;
    tool_output.max_bytes = 10000;
    compaction = {
      auto = true;
      prune = true;
      tail_turns = 2;
      preserve_recent_tokens = 1000;
      reserved = 2000;
    };
    watcher.ignore = [ "target/**" ];
    enterprise.url = "https://opencode.example.org";
    experimental = {
      batch_tool = true;
      continue_loop_on_deny = true;
      disable_paste_summary = true;
      mcp_timeout = 5000;
      openTelemetry = false;
      primary_tools = [ "task" ];
      policies = [
        {
          action = "provider.use";
          effect = "deny";
          resource = "opencode";
        }
      ];
    };
  };

  tools = {
    mcp.tickets = {
      type = "local";
      command = [
        "tickets"
        "--stdio"
      ];
      cwd = "/srv";
      environment.LEVEL = "1";
      enabled = false;
      timeout = 9000;
    };
    mcp.search = {
      type = "remote";
      url = "https://search.example.org/mcp";
      headers.x-team = "a";
      enabled = false;
      timeout = 9000;
      oauth = {
        clientId = "c";
        clientSecret = "s";
        scope = "read";
        callbackPort = 19876;
        redirectUri = "http://127.0.0.1:19876/cb";
      };
    };
    mcp.plain = {
      type = "remote";
      url = "https://plain.example.org/mcp";
      oauth = false;
      enabled = false;
    };
    mcp.elsewhere.enabled = false;
    lsp.rust.disabled = true;
    lsp.mine = {
      command = [ "mine-ls" ];
      extensions = [ ".mine" ];
      env.LEVEL = "1";
      initialization.deep.a = 1;
    };
    formatter.prettier.disabled = true;
    formatter.mine = {
      command = [
        "mine-fmt"
        "$FILE"
      ];
      environment.LEVEL = "1";
      extensions = [ ".mine" ];
    };
    plugin = [
      "file:///srv/plugin.js"
      [
        "file:///srv/other.js"
        { loud = true; }
      ]
    ];
  };
}
