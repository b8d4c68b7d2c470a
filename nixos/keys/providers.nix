# Providers that are known: where they are, how they take a key, and what of their API a server asks for, as opencode 1.18 does. `variables` is what
# opencode takes a key from, where it is not `<NAME>_API_KEY`.
let
  bearer = "Authorization: Bearer";
  # Requests, after `path`. In a path `<model>` stands for a model's name.
  chat = [
    "GET /models"
    "POST /chat/completions"
  ];
  responses = [ "POST /responses" ];
  messages = [
    "POST /messages"
    "POST /messages/count_tokens"
  ];
in
{
  known = {
    anthropic = {
      upstream = "https://api.anthropic.com/v1";
      header = "x-api-key";
      requests = [ "GET /models" ] ++ messages;
    };
    deepseek = {
      upstream = "https://api.deepseek.com";
      header = bearer;
      requests = chat;
    };
    google = {
      upstream = "https://generativelanguage.googleapis.com/v1beta";
      header = "x-goog-api-key";
      variables = [
        "GEMINI_API_KEY"
        "GOOGLE_API_KEY"
        "GOOGLE_GENERATIVE_AI_API_KEY"
      ];
      requests = [
        "GET /models"
        "POST /models/<model>:countTokens"
        "POST /models/<model>:generateContent"
        "POST /models/<model>:streamGenerateContent"
      ];
    };
    groq = {
      upstream = "https://api.groq.com/openai/v1";
      header = bearer;
      requests = chat;
    };
    mistral = {
      upstream = "https://api.mistral.ai/v1";
      header = bearer;
      requests = chat;
    };
    openai = {
      upstream = "https://api.openai.com/v1";
      header = bearer;
      requests = chat ++ responses;
    };
    openrouter = {
      upstream = "https://openrouter.ai/api/v1";
      header = bearer;
      requests = chat ++ responses;
    };
    xai = {
      upstream = "https://api.x.ai/v1";
      header = bearer;
      requests = chat ++ responses;
    };
  };

  # Of one that is not known: what the usual packages of the AI SDK ask for.
  other = {
    header = bearer;
    requests = chat ++ responses ++ messages;
  };

  # What goes to the provider of a client's headers, if it is there. No other does, so no credential of whatever name.
  passed = [
    "Accept"
    "Accept-Encoding"
    "Anthropic-Beta"
    "Anthropic-Version"
    "Content-Type"
    "HTTP-Referer"
    "OpenAI-Beta"
    "Originator"
    "Session-Id"
    "User-Agent"
    "X-Session-Affinity"
    "X-Session-Id"
    "X-Title"
  ];
}
