"""Uses the page of iam-kms-console in Chromium: browser.py URL FOLDER CODE

Light and dark, wide and at a phone's width: axe finds nothing, and pictures go to FOLDER. Then it enters CODE with the
keyboard alone, without JavaScript, and sees that the session is open.
"""

import importlib.util
import pathlib
import sys
import tempfile

from selenium import webdriver
from selenium.webdriver.common.keys import Keys

# Of that package, only its copy of axe-core is used.
AXE = next(pathlib.Path(importlib.util.find_spec("axe_playwright_python").origin).parent.rglob("axe.min.js"))
WIDE = {"width": 1100, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def chromium(profile):
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def look(driver, url, scheme, metrics, picture):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(url)
    width = driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= metrics["width"], f"{picture}: the page is {width} pixels wide"
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    results = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    findings = [f"{found['id']}: {[node['html'] for node in found['nodes']]}" for found in results["violations"]]
    assert not findings, f"{picture}: {findings}"
    assert len(results["passes"]) > 10, results["passes"]
    driver.save_screenshot(str(picture))
    print(f"{picture.name}: axe {results['testEngine']['version']}, {len(results['passes'])} rules passed, none failed")


def press(driver, *keys):
    driver.switch_to.active_element.send_keys(*keys)


def name(driver):
    element = driver.switch_to.active_element
    return element.get_attribute("id") or element.text or element.get_attribute("aria-labelledby")


def enter_with_keyboard(driver, url, code):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    driver.get(url)
    visited = []
    while "code" not in visited:
        press(driver, Keys.TAB)
        visited.append(name(driver))
    press(driver, code, Keys.TAB)
    assert name(driver) == "reason", name(driver)
    press(driver, "ticket 4714", Keys.TAB)
    assert name(driver) == "Open the session", name(driver)
    press(driver, Keys.ENTER)
    page = driver.page_source
    assert "accepted</strong>: the session is open until" in page, page
    assert driver.title.startswith("Session open"), driver.title
    assert driver.current_url == url, driver.current_url
    print("the code was entered with the keyboard, without JavaScript")


def main():
    url, folder, code = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as profile:
        driver = chromium(profile)
        try:
            look(driver, url, "light", WIDE, folder / "console-awaiting.png")
            enter_with_keyboard(driver, url, code)
            driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
            look(driver, url, "light", WIDE, folder / "console-light.png")
            look(driver, url, "dark", WIDE, folder / "console-dark.png")
            look(driver, url, "light", PHONE, folder / "console-phone.png")
            look(driver, url, "dark", PHONE, folder / "console-phone-dark.png")
        finally:
            driver.quit()


main()
