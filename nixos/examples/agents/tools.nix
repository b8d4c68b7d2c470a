# MCP servers. Their tools are called `<server>_<tool>`, and permissions.nix denies them to whoever does not list them.
{
  services.opencode.instances.workshop.config.mcp = {
    # The project's own. It runs in the unit, and reaches what the agents reach.
    tickets = {
      type = "local";
      command = [
        "python3"
        "tools/tickets.py"
      ];
      environment.TICKETS_FILE = "tickets.json";
      timeout = 10000;
    };
    search = {
      type = "remote";
      url = "https://search.example.org/mcp";
      headers.Authorization = "Bearer {env:SEARCH_TOKEN}";
      oauth = false;
    };
    # Described, and off.
    browser = {
      type = "local";
      command = [ "browser-mcp" ];
      enabled = false;
    };
  };
}
