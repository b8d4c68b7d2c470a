# Who does what. Rules of an agent come after those for all, in permissions.nix, which deny what is not listed.
let
  small = "anthropic/claude-haiku-4-5";
  medium = "anthropic/claude-sonnet-4-5";

  allow = tool: {
    inherit tool;
    action = "allow";
  };
  # A tool on some things.
  only = tool: map (pattern: allow tool // { inherit pattern; });

  subagent = model: description: prompt: permission: {
    mode = "subagent";
    inherit
      description
      model
      permission
      prompt
      ;
  };
  # One that writes a language, and runs its tools.
  developer =
    language: files: commands:
    subagent medium "Writes ${language}" ''
      You write ${language}. Make the smallest change that does what you were told, in the style of what is there, with a test that fails
      without it. Run the tests that concern it. Say what you changed, and what you did not dare to.
    '' (only "edit" files ++ only "bash" commands ++ only "skill" [ "commit" ]);
in
{
  services.opencode.instances.workshop.config.agent = {
    lead = {
      mode = "primary";
      description = "Plans, hands out, and puts together";
      prompt = ''
        You lead. Have `scout` look before anybody changes anything, give each part to the specialist for it, have `reviewer` and
        `security` read what came of it, and answer with what was done, what was not, and why. You change nothing yourself.
      '';
      permission = [
        (allow "task")
        (allow "todowrite")
      ]
      ++ only "tickets_*" [ "*" ];
    };

    # opencode's own that are not wanted.
    build.disable = true;
    general.disable = true;

    scout = subagent small "Finds where something is, and says so with paths and lines" ''
      You look, and change nothing. Answer with paths and line numbers, and one sentence for each.
    '' [ ];

    historian = subagent small "Says when and why something became as it is" ''
      You read the history with git. Quote the commits that you rely on.
    '' (only "bash" [
      "git log *"
      "git show *"
      "git blame *"
    ]);

    architect = subagent medium "Compares designs, and writes down the one to take" ''
      You weigh designs against what is there. Write the decision, what was rejected and why, into docs/decisions.
    '' (only "edit" [ "docs/decisions/*" ]);

    rust = developer "Rust" [
      "*.rs"
      "*/Cargo.toml"
    ] [ "cargo *" ];
    python = developer "Python" [ "*.py" ] [
      "python3 *"
      "pytest *"
    ];
    nix = developer "Nix" [ "*.nix" ] [ "nix-instantiate *" ];
    shell = developer "shell scripts" [ "*.sh" ] [
      "sh -n *"
      "shellcheck *"
    ];

    tester = subagent small "Runs tests and says what failed" ''
      You run tests and change nothing. Quote what failed, and no more of the output than that.
    '' (only "bash" [
      "cargo test*"
      "pytest*"
      "git status"
    ]);

    reviewer =
      subagent medium "Reads a change for what is wrong with it" ''
        You review by the skill `review`. You change nothing.
      '' (only "bash" [ "git diff*" ] ++ only "skill" [ "review" ])
      // {
        temperature = 0.1;
      };

    security = subagent medium "Reads a change as an attacker would" ''
      You look for what an attacker makes of a change: input that is trusted, secrets that leak, rights that grow. You change nothing.
    '' (only "bash" [ "git diff*" ]);

    writer = subagent medium "Writes documentation" ''
      You write for a reader who has not read the code. Plain words, short sentences, tables where things are compared.
    '' (only "edit" [
      "docs/*"
      "*.md"
    ]);

    researcher = subagent small "Finds out what others know" ''
      You look things up. Say where each answer comes from.
    '' (only "search_*" [ "*" ]);

    release = subagent medium "Makes a release" ''
      You make releases by the skill `release`.
    '' (
      only "edit" [ "CHANGELOG.md" ]
      ++ only "bash" [
        "git tag *"
        "git status"
      ]
      ++ only "skill" [ "release" ]
      ++ only "tickets_*" [ "*" ]
    );
  };
}
