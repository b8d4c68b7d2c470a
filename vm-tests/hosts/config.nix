# Two servers whose operator denies the shell; the second is set up so that the agent cannot change that.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults = {
      networkIsolation.enable = true;
      config = {
        username = "operator";
        permission = [
          {
            tool = "bash";
            action = "deny";
          }
          {
            tool = "bash";
            pattern = "git status";
            action = "allow";
          }
        ];
      };
      agents.reviewer = ''
        ---
        description: Reads a change
        mode: subagent
        ---
        Read it.
      '';
      commands.check = ''
        ---
        description: Checks
        ---
        Run the checks.
      '';
      skills.release = ''
        ---
        name: release
        description: How a release is made
        ---
        Ask first.
      '';
    };
    instances = {
      plain = {
        directory = "/srv/plain";
        listen.port = 4101;
      };
      # What docs/opencode-json.md has for those whose agents are not to change the configuration.
      firm = {
        directory = "/srv/firm";
        listen.port = 4102;
        environment.OPENCODE_DISABLE_PROJECT_CONFIG = "1";
        postInitScript = ''
          mkdir -p ~/.opencode
          touch ~/.config/opencode/.gitignore ~/.opencode/.gitignore
        '';
        sandbox.extraConfig.ReadOnlyPaths = [
          "/var/lib/opencode/instance-state/firm/.config"
          "/var/lib/opencode/instance-state/firm/.opencode"
        ];
      };
    };
  };
}
