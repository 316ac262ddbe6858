//! The files that the browser runs, compiled in: no build step, nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use super::Page;

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// Path below `/page/`, type, content.
const FILES: [(&str, &str, &str); 12] = [
    ("/", HTML, include_str!("web/index.html")),
    ("/style.css", STYLE, include_str!("web/style.css")),
    ("/icon.svg", PICTURE, include_str!("web/icon.svg")),
    ("/main.js", SCRIPT, include_str!("web/main.js")),
    ("/server.js", SCRIPT, include_str!("web/server.js")),
    ("/dom.js", SCRIPT, include_str!("web/dom.js")),
    ("/words.js", SCRIPT, include_str!("web/words.js")),
    ("/live.js", SCRIPT, include_str!("web/live.js")),
    ("/calls.js", SCRIPT, include_str!("web/calls.js")),
    ("/call.js", SCRIPT, include_str!("web/call.js")),
    ("/sound.js", SCRIPT, include_str!("web/sound.js")),
    ("/status.js", SCRIPT, include_str!("web/status.js")),
];

pub(super) fn routes() -> Router<Arc<Page>> {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, content)| {
            let answer = move || async move { ([(header::CONTENT_TYPE, kind)], content) };
            router.route(path, get(answer))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_served_and_none_is_from_elsewhere() {
        let names: Vec<&str> = FILES.iter().map(|(path, ..)| &path[1..]).collect();
        for (path, kind, content) in FILES {
            if kind == HTML {
                for part in content.split([' ', '\n']).filter(|part| {
                    part.starts_with("src=") || (part.starts_with("href=") && !part.contains('#'))
                }) {
                    let name = part.split('"').nth(1).unwrap();
                    assert!(names.contains(&name), "{path}: {name}");
                }
                assert!(!content.contains("<script>") && !content.contains("style="));
            }
            for line in content.lines().filter(|_| kind == SCRIPT) {
                if let Some((_, from)) = line.split_once(" from \"") {
                    let name = from.split('"').next().unwrap();
                    assert!(
                        names.contains(&name.trim_start_matches("./")),
                        "{path}: {name}"
                    );
                }
                // Text of callers is inserted as text.
                for unsafe_name in [
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                    "eval(",
                ] {
                    assert!(!line.contains(unsafe_name), "{path}: {line}");
                }
            }
        }
    }
}
