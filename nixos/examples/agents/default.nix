# One server with many agents: a lead that hands work to specialists, each of which may do what its task takes and no more.
# Nobody attends its sessions, so nothing is ever asked.
{ pkgs, ... }:
{
  imports = [
    ./agents.nix
    ./permissions.nix
    ./tools.nix
  ];

  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;
    instances.workshop = {
      directory = "/srv/workshop";
      environmentFile = "/run/secrets/opencode-workshop";
      # What the agents run.
      path = [
        pkgs.git
        pkgs.python3
      ];
      resources = {
        memoryMax = "8G";
        tasksMax = 1024;
      };
      networkIsolation = {
        enable = true;
        # The model's provider.
        presets = [ "anthropic" ];
        # The remote MCP server.
        outboundAllowNames = [ "search.example.org" ];
      };

      config = {
        model = "anthropic/claude-opus-4-5";
        small_model = "anthropic/claude-haiku-4-5";
        default_agent = "lead";
        share = "disabled";
        instructions = [ "CONTRIBUTING.md" ];
      };

      skills = {
        commit = builtins.readFile ./skills/commit.md;
        review = builtins.readFile ./skills/review.md;
        release = builtins.readFile ./skills/release.md;
      };

      commands.check = ''
        ---
        description: Runs the checks, and has what fails mended
        agent: lead
        ---
        Have `tester` run every check, and the agent of the language mend what fails. Attention: $ARGUMENTS
      '';
    };
  };
}
