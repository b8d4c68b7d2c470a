# One server with every flag, a declared file of each kind, and hooks that say what they find and fail when they are told to.
{
  imports = [ ../common.nix ];

  services.opencode = {
    instances.a = {
      directory = "/srv/a";
      # mDNS is for others, so not on loopback.
      listen = {
        address = "192.0.2.1";
        port = 4101;
      };
      cors = [
        "https://one.example"
        "https://two.example"
      ];
      mdns = true;
      mdnsDomain = "project.local";
      pure = true;
      agents.reviewer = ''
        ---
        description: Reviews a change
        ---
        Read the diff.
      '';
      commands.hello = ''
        Say hello.
      '';
      skills.greeting = ''
        ---
        name: greeting
        description: How to greet
        ---
        Politely.
      '';
      preInitScript = ''
        if [ -e "$HOME/.config" ]; then echo "pre-init: links are there"; else echo "pre-init: nothing is there"; fi
        if [ -e "$HOME/fail-pre" ]; then echo "pre-init: told to fail" >&2; exit 7; fi
      '';
      postInitScript = ''
        if [ -L "$HOME/.config/opencode/opencode.json" ]; then echo "post-init: links are there"; fi
        if [ -e "$HOME/fail-post" ]; then cat "$HOME/no-such-file"; fi
        echo "post-init: done"
      '';
    };
  };
}
