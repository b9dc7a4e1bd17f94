"""The tool that the other examples let the model call: its schema, and a function behind it."""

import json

QUESTION = "What's the weather in Paris?"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name of the city."}},
                "required": ["city"],
            },
        },
    }
]

WEATHER = {
    "Paris": {"temperature": 21, "condition": "sunny"},
    "Oslo": {"temperature": 8, "condition": "rainy"},
    "Rome": {"temperature": 26, "condition": "clear"},
}


def run_tool(name: str, arguments: str) -> str:
    """Run the tool that the model asked for and return its result as JSON; errors go to the model too."""
    if name != "get_weather":
        return json.dumps({"error": f"there is no tool {name}"})
    try:
        city = json.loads(arguments)["city"]
    except (ValueError, KeyError, TypeError) as error:
        return json.dumps({"error": f"bad arguments: {error!r}"})
    return json.dumps(WEATHER.get(city, {"error": f"no weather station in {city}"}))
