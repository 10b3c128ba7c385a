//! Somebody who works with the console in a browser: with scripts, without them, or by keyboard alone.

use std::time::Duration;

use fantoccini::{
    Locator,
    actions::{InputSource, KeyAction, KeyActions, MOUSE_BUTTON_LEFT, MouseActions, PointerAction},
    elements::Element,
    key::Key,
};
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    console_browser::{Look, WIDE},
    support::{eventually, text},
};

/// How somebody uses the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Scripts,
    NoScripts,
    /// With scripts, and without a mouse.
    Keyboard,
}

/// The time between the two presses of a double click.
const BETWEEN: Duration = Duration::from_millis(100);

/// How many presses of Tab it may take from the top of a page to anything on it.
const MOST_TABS: usize = 120;

pub struct Operator {
    mode: Mode,
    pub browser: Browser,
    url: String,
}

/// The links, the buttons and the headings of parts to open with this name.
fn named(name: &str) -> String {
    format!(
        "//*[self::header or self::main or self::footer]//*[self::a or self::button or self::summary][normalize-space()=\"{name}\"]"
    )
}

/// The field with this label.
fn labelled(label: &str) -> String {
    let label = format!("//label[text()[normalize-space()=\"{label}\"]]");
    format!("//*[@id={label}/@for] | {label}//input")
}

impl Operator {
    /// Somebody in front of the console at this URL, not signed in.
    pub async fn start(mode: Mode, url: String) -> Self {
        let look = Look {
            has_scripts: mode != Mode::NoScripts,
            ..WIDE
        };
        let browser = look.open().await;
        Self { mode, browser, url }
    }

    pub fn has_scripts(&self) -> bool {
        self.mode != Mode::NoScripts
    }

    pub async fn sign_in(&self, key: &str) {
        self.visit("/sign-in").await;
        self.enter("API key", key).await;
        self.press("Sign in").await;
        self.browser.is_at("/links").await;
    }

    pub async fn sign_out(&self) {
        self.press("Sign out").await;
        self.browser.is_at("/sign-in").await;
    }

    /// Enters an address.
    pub async fn visit(&self, path: &str) {
        self.browser.visit(&format!("{}{path}", self.url)).await;
    }

    pub async fn reload(&self) {
        self.browser.page.refresh().await.unwrap();
    }

    /// Goes back to the page before, which the browser asks for again.
    pub async fn go_back(&self) {
        self.browser.page.back().await.unwrap();
        self.reload().await;
    }

    pub async fn says(&self, words: &str) {
        self.browser.says(words).await;
    }

    pub async fn is_at(&self, path: &str) {
        self.browser.is_at(path).await;
    }

    /// Opens a link from the list of the newest.
    pub async fn open(&self, link: &Value) {
        self.press("Links").await;
        self.is_at("/links").await;
        self.press(text(&link["reference"])).await;
        self.is_at(&format!("/links/{}", text(&link["id"]))).await;
    }

    /// What this script returns. `WebDriver` runs it even if the page may not run any.
    pub async fn read(&self, script: &str) -> Value {
        self.browser.run(script).await
    }

    /// Does something with an element, which the page may replace at the same moment.
    async fn with<T>(
        &self,
        path: &str,
        act: impl AsyncFn(Element) -> Result<T, fantoccini::error::CmdError>,
    ) -> T {
        eventually(&format!("there is {path}"), async || {
            let element = self.browser.page.find(Locator::XPath(path)).await.ok()?;
            match act(element).await {
                Err(error) if error.is_stale_element_reference() => None,
                result => Some(result.unwrap()),
            }
        })
        .await
    }

    /// Presses Tab until this element has the focus, which is seen.
    async fn tab_to(&self, path: &str) {
        self.with(path, async |_| Ok(())).await;
        let script = format!(
            "const wanted = document.evaluate({}, document, null, XPathResult.FIRST_ORDERED_NODE_TYPE, null).singleNodeValue;
             return wanted === document.activeElement && getComputedStyle(wanted).outlineStyle",
            json!(path)
        );
        for _ in 0..MOST_TABS {
            let outline = self.read(&script).await;
            if outline != json!(false) {
                assert_ne!(outline, "none", "nobody sees the focus on {path}");
                return;
            }
            self.strike(&[Key::Tab]).await;
        }
        panic!("nobody reaches {path} by keyboard");
    }

    /// Presses keys one after the other, wherever the focus is.
    async fn strike(&self, keys: &[Key]) {
        let mut actions = KeyActions::new("keyboard".to_owned());
        for (n, key) in keys.iter().enumerate() {
            if n > 0 {
                let duration = BETWEEN;
                actions = actions.then(KeyAction::Pause { duration });
            }
            let value = char::from(*key);
            actions = actions
                .then(KeyAction::Down { value })
                .then(KeyAction::Up { value });
        }
        self.browser.page.perform_actions(actions).await.unwrap();
    }

    /// Follows the link, presses the button, or opens the part with this name.
    pub async fn press(&self, name: &str) {
        let path = named(name);
        if self.mode == Mode::Keyboard {
            self.tab_to(&path).await;
            self.strike(&[Key::Enter]).await;
        } else {
            self.with(&path, async |element| element.click().await)
                .await;
        }
    }

    /// Presses these keys one after the other, once the page knows its shortcuts.
    pub async fn use_shortcut(&self, keys: [&str; 2]) {
        self.browser.find_one(".keys:not([hidden])").await;
        for key in keys {
            self.browser.key(key).await;
        }
    }

    /// Presses the button with this name twice, as quickly as people do.
    pub async fn press_twice(&self, name: &str) {
        let path = named(name);
        if self.mode == Mode::Keyboard {
            self.tab_to(&path).await;
            self.strike(&[Key::Enter, Key::Enter]).await;
            return;
        }
        let button = self.with(&path, async |element| Ok(element)).await;
        let into_view = "arguments[0].scrollIntoView({block: 'center'})";
        let page = &self.browser.page;
        page.execute(into_view, vec![serde_json::to_value(&button).unwrap()])
            .await
            .unwrap();
        let mut actions =
            MouseActions::new("mouse".to_owned()).then(PointerAction::MoveToElement {
                element: button,
                duration: Some(Duration::ZERO),
                x: 0.0,
                y: 0.0,
            });
        let (button, duration) = (MOUSE_BUTTON_LEFT, BETWEEN);
        for _ in 0..2 {
            actions = actions
                .then(PointerAction::Down { button })
                .then(PointerAction::Up { button })
                .then(PointerAction::Pause { duration });
        }
        page.perform_actions(actions).await.unwrap();
    }

    /// The element with the focus, once this one has it.
    async fn focus_on(&self, path: &str) -> Element {
        if self.mode == Mode::Keyboard {
            self.tab_to(path).await;
            self.browser.page.active_element().await.unwrap()
        } else {
            self.with(path, async |element| Ok(element)).await
        }
    }

    /// Types this into a field instead of what it contains.
    pub async fn enter(&self, label: &str, what: &str) {
        let field = self.focus_on(&labelled(label)).await;
        if self.mode == Mode::Keyboard {
            let (control, released) = (char::from(Key::Control), char::from(Key::Null));
            let typed = format!("{control}a{released}{what}");
            field.send_keys(&typed).await.unwrap();
        } else {
            field.clear().await.unwrap();
            field.send_keys(what).await.unwrap();
        }
        let value = field.prop("value").await.unwrap();
        assert_eq!(value.as_deref(), Some(what), "{label}");
    }

    /// Types a day such as 2026-11-27 into a field for one.
    pub async fn enter_day(&self, label: &str, day: &str) {
        let field = self.focus_on(&labelled(label)).await;
        let parts: Vec<_> = day.split('-').collect();
        let typed = format!("{}{}{}", parts[1], parts[2], parts[0]);
        field.send_keys(&typed).await.unwrap();
        let value = field.prop("value").await.unwrap();
        assert_eq!(value.as_deref(), Some(day), "{label}");
    }

    /// Chooses one of the values of a field.
    pub async fn choose(&self, label: &str, option: &str) {
        let field = self.focus_on(&labelled(label)).await;
        if self.mode != Mode::Keyboard {
            return field.select_by_label(option).await.unwrap();
        }
        let chosen = "return document.activeElement.selectedOptions[0].text";
        for _ in 0..20 {
            if self.read(chosen).await == option {
                return;
            }
            self.strike(&[Key::Down]).await;
        }
        panic!("nobody chooses {option} as {label} by keyboard");
    }

    /// Ticks a box.
    pub async fn tick(&self, label: &str) {
        self.switch(label, true).await;
    }

    /// Removes the tick from a box.
    pub async fn untick(&self, label: &str) {
        self.switch(label, false).await;
    }

    async fn switch(&self, label: &str, is_on: bool) {
        let field = self.focus_on(&labelled(label)).await;
        if self.mode == Mode::Keyboard {
            field.send_keys(" ").await.unwrap();
        } else {
            field.click().await.unwrap();
        }
        assert_eq!(field.is_selected().await.unwrap(), is_on, "{label}");
    }

    /// Nothing on this page keeps people from using it, in the light and in the dark. It is the same page in all modes, so one of
    /// them is enough.
    pub async fn is_accessible(&self) {
        if self.mode != Mode::Scripts {
            return;
        }
        self.turn_dark(true).await;
        self.browser.is_legible().await;
        self.turn_dark(false).await;
        self.browser.is_accessible().await;
        self.browser.fits().await;
    }

    /// Shows the page as somebody sees it who prefers a dark one, or a light one.
    async fn turn_dark(&self, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let parameters = json!({"features": features});
        self.browser
            .command("Emulation.setEmulatedMedia", parameters)
            .await;
        let is_done = format!(
            "return matchMedia('(prefers-color-scheme: dark)').matches === {is_dark} && document.getAnimations().length === 0"
        );
        // Some colours change little by little.
        eventually("the colours have changed", async || {
            (self.read(&is_done).await == json!(true)).then_some(())
        })
        .await;
    }
}
